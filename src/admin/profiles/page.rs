//! The index: every profile with its count, and the forms that say how much is recorded.

use super::super::guard::{Answer, Request};
use super::super::html;
use super::super::status::page;
use super::snapshot::{Rate, SNAPSHOTS, Snapshot};
use super::{ROUTES, Route, Site, Trouble};

const ABOUT: &str = "\
<p><code>go tool pprof http://ADDRESS/debug/pprof/NAME</code> reads each of the profiles. The links here lead to text and \
pictures for people; <code>?seconds=N</code> asks for the change over N seconds.</p>\n";

pub(super) fn index(_: &Site, route: &'static Route, _: &Request) -> Result<Answer, Trouble> {
    let rows: String = ROUTES.iter().filter_map(row).collect();
    let forms: String = SNAPSHOTS.iter().filter_map(form).collect();
    let body = format!(
        "<h1>/debug/pprof/</h1>\n{ABOUT}\
         <table>\n<tr><th>count</th><th>profile</th><th></th><th></th></tr>\n{rows}</table>\n\
         <p><a href=\"goroutine?debug=2\">every task and every thread, one by one</a></p>\n\
         <h2>What is recorded</h2>\n{forms}"
    );
    Ok(html(route.path, page("/debug/pprof/", false, &body)))
}

/// A line of the table. What leads here has none.
fn row(route: &Route) -> Option<String> {
    let name = route.path.strip_prefix("/debug/pprof/").filter(|name| !name.is_empty())?;
    let snapshot = Snapshot::named(name).ok();
    let count = snapshot.map_or_else(String::new, |snapshot| (snapshot.count)().to_string());
    let query = match name {
        _ if snapshot.is_some() => "?debug=1",
        "flamegraph" => "?seconds=10",
        _ => "",
    };
    let picture = snapshot.map_or_else(String::new, |_| format!("<a href=\"flamegraph?profile={name}\">picture</a>"));
    Some(format!(
        "<tr><td>{count}</td><td><a href=\"{name}{query}\">{name}</a></td><td>{}</td><td>{picture}</td></tr>\n",
        route.about
    ))
}

fn form(snapshot: &Snapshot) -> Option<String> {
    let Rate { parameter, about, get, .. } = snapshot.rate.as_ref()?;
    let (name, value) = (snapshot.name, get());
    Some(format!(
        "<form method=\"post\" action=\"{name}\"><p><label>{name}: <input name=\"{parameter}\" size=\"12\" \
         inputmode=\"numeric\" value=\"{value}\"> {about}</label> <button>set</button></p></form>\n"
    ))
}
