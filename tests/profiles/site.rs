//! Paths, parameters, statuses, headers and texts, as Go's handlers have them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use superchat::admin::BearerToken;
use superchat::admin::guard::GuardError;
use superchat::admin::profiles::{ProfileOptions, ProfileServer};
use superchat::metrics::Exposition;

use crate::support::http::{exchange, get};
use crate::{GZIP, Site, metrics};

const TEXT: &str = "text/plain; charset=utf-8";
const BINARY: &str = "application/octet-stream";
/// Profiles that show a moment, and how their text begins.
const SNAPSHOTS: &[(&str, &str)] = &[
    ("allocs", "heap profile: "),
    ("block", "--- contention:\ncycles/second=1000000000\n"),
    ("goroutine", "goroutine profile: total "),
    ("heap", "heap profile: "),
    ("mutex", "--- mutex:\ncycles/second=1000000000\nsampling period=1\n"),
    ("threadcreate", "threadcreate profile: total "),
];

#[test]
fn every_profile_is_a_file_and_a_text() {
    let site = Site::open();
    for (name, begin) in SNAPSHOTS {
        let file = site.get(name);
        assert_eq!((file.status, file.header("content-type")), (200, Some(BINARY)), "{name}: {}", file.body);
        assert_eq!(file.header("content-disposition"), Some(format!("attachment; filename=\"{name}\"").as_str()));
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(file.header("content-encoding"), None, "{name}: the tool unpacks it itself");
        assert!(file.bytes.starts_with(&GZIP), "{name}");
        let text = site.get(&format!("{name}?debug=1"));
        assert_eq!((text.status, text.header("content-type")), (200, Some(TEXT)), "{name}: {}", text.body);
        assert_eq!(text.header("content-disposition"), None, "{name}: a browser shows it");
        assert!(text.body.starts_with(begin), "{name}: {}", text.body);
    }
}

#[test]
fn a_difference_takes_its_time_and_says_so_in_its_name() {
    let site = Site::open();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let get = |name: &'static str| (name, site.get(&format!("{name}?seconds=1")));
        let ask = |(name, _): &'static (&str, &str)| scope.spawn(move || get(name));
        let asked: Vec<_> = SNAPSHOTS.iter().map(ask).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    for (name, file) in answers {
        let disposition = format!("attachment; filename=\"{name}-delta\"");
        assert_eq!(
            (file.status, file.header("content-disposition")),
            (200, Some(disposition.as_str())),
            "{}",
            file.body
        );
        assert!(file.bytes.starts_with(&GZIP), "{name}");
    }
}

#[test]
fn cpu_samples_come_as_a_file() {
    let site = Site::open();
    let file = site.get("profile?seconds=1&hz=50");
    assert_eq!((file.status, file.header("content-type")), (200, Some(BINARY)), "{}", file.body);
    assert_eq!(file.header("content-disposition"), Some("attachment; filename=\"profile\""));
    assert!(file.bytes.starts_with(&GZIP));
}

#[test]
fn what_makes_no_sense_is_refused_in_the_words_of_go() {
    let site = Site::open();
    for (path, status, line) in [
        ("heap?seconds=-1", 400, "invalid value for \"seconds\" - must be a positive integer"),
        ("heap?seconds=0", 400, "invalid value for \"seconds\" - must be a positive integer"),
        ("heap?seconds=NaN", 400, "invalid value for \"seconds\" - must be a positive integer"),
        ("heap?seconds=1.5", 400, "invalid value for \"seconds\" - must be a positive integer"),
        ("heap?seconds=99999999999999999999", 400, "invalid value for \"seconds\" - must be a positive integer"),
        ("heap?seconds=301", 400, "profile duration exceeds the server's limit of 300 seconds"),
        ("heap?seconds=1000000000", 400, "profile duration exceeds the server's limit of 300 seconds"),
        ("goroutine?seconds=1&debug=1", 400, "seconds and debug params are incompatible"),
        ("profile?seconds=301", 400, "profile duration exceeds the server's limit of 300 seconds"),
        ("profile?seconds=9223372036854775807", 400, "profile duration exceeds the server's limit of 300 seconds"),
        ("profile?seconds=1&hz=0", 400, "invalid value for \"hz\" - must be 1 to 250"),
        ("profile?seconds=1&hz=251", 400, "invalid value for \"hz\" - must be 1 to 250"),
        ("profile?seconds=1&hz=-5", 400, "invalid value for \"hz\" - must be 1 to 250"),
        ("profile?seconds=1&hz=fast", 400, "invalid value for \"hz\" - must be 1 to 250"),
        ("flamegraph?profile=nothing", 404, "Unknown profile"),
        ("flamegraph?profile=heap&type=cpu", 400, "invalid value for \"type\" - must be "),
        ("nothing", 404, "Unknown profile"),
        ("heap/", 404, "Unknown profile"),
        ("../../etc/passwd", 404, "Unknown profile"),
    ] {
        let answer = site.get(path);
        assert_eq!((answer.status, answer.header("content-type")), (status, Some(TEXT)), "{path}: {}", answer.body);
        assert!(answer.body.starts_with(line), "{path}: {}", answer.body);
        // Without it the tool hides the text.
        assert_eq!(answer.header("x-go-pprof"), Some("1"), "{path}");
        assert_eq!(answer.header("content-disposition"), None, "{path}");
    }
}

#[test]
fn parameters_that_go_forgives_are_forgiven() {
    let site = Site::open();
    for path in ["heap?seconds=", "heap?debug=x", "heap?gc=1", "heap?gc=maybe&debug=", "heap?unknown=1", "heap?&&=&"] {
        let answer = site.get(path);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(BINARY)), "{path}: {}", answer.body);
    }
}

#[test]
fn a_dump_lists_every_thread() {
    let site = Site::open();
    let dump = site.get("goroutine?debug=2").body;
    let waiting = |name: &str| dump.contains(&format!("[{name}, "));
    assert!(waiting("profiles-front") && waiting("profiles-0"), "{dump}");
    assert!(dump.starts_with("goroutine "), "{dump}");
    assert!(dump.contains("created by superchat::admin::guard::"), "{dump}");
}

#[test]
fn the_index_counts_and_links() {
    let site = Site::open();
    let index = site.get("");
    assert_eq!((index.status, index.header("content-type")), (200, Some("text/html; charset=utf-8")));
    for (name, _) in SNAPSHOTS {
        assert!(index.body.contains(&format!("<a href=\"{name}?debug=1\">{name}</a>")), "{name}: {}", index.body);
    }
    for name in ["cmdline", "profile", "symbol", "trace", "goroutine?debug=2", "flamegraph?seconds=10"] {
        assert!(index.body.contains(&format!("href=\"{name}\"")), "{name}: {}", index.body);
    }
    let count = |name: &str| {
        let (before, _) = index.body.split_once(&format!("</td><td><a href=\"{name}?debug=1\"")).unwrap();
        before.rsplit('>').next().unwrap().parse::<usize>().unwrap()
    };
    assert!(count("threadcreate") >= 11 && count("goroutine") > count("threadcreate"), "{}", index.body);
    for foreign in ["<script", "http://1", "https://", "src=", "@import", "url("] {
        assert!(!index.body.contains(foreign), "{foreign}");
    }
    for path in ["/", "/debug/pprof"] {
        let moved = exchange(site.address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!((moved.status, moved.header("location")), (301, Some("/debug/pprof/")), "{path}");
    }
}

#[test]
fn the_command_line_is_separated_by_nul() {
    let shown = Site::open().get("cmdline");
    let expected: Vec<String> = std::env::args().collect();
    assert_eq!((shown.header("content-type"), shown.body.as_str()), (Some(TEXT), expected.join("\0").as_str()));
}

#[test]
fn a_trace_is_refused_with_a_reason() {
    let answer = Site::open().get("trace?seconds=1");
    assert_eq!((answer.status, answer.header("x-go-pprof")), (404, Some("1")));
    assert!(answer.body.starts_with("there is no execution trace of this server"), "{}", answer.body);
}

#[test]
fn addresses_in_query_and_body_are_named() {
    let site = Site::open();
    #[expect(clippy::as_conversions, reason = "the address of a function has no other spelling")]
    let address = addresses_in_query_and_body_are_named as fn() as usize;
    let list = format!("{address:#x}+0+nonsense+{address}+0x1");
    let asked = site.get(&format!("symbol?{list}"));
    let posted = post(&site, "symbol", "", &list);
    for answer in [asked, posted] {
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(TEXT)));
        let lines: Vec<&str> = answer.body.lines().collect();
        assert_eq!(lines[0], "num_symbols: 1");
        let is_named = |line: &&str| {
            let (shown, name) = line.split_once(' ').unwrap();
            shown == format!("{address:#x}") && name.ends_with("addresses_in_query_and_body_are_named")
        };
        assert_eq!((lines.len(), lines[1..].iter().filter(|line| is_named(line)).count()), (3, 2), "{}", answer.body);
    }
    assert_eq!(site.get("symbol").body, "num_symbols: 1\n");
}

#[test]
fn a_body_too_large_or_of_unknown_length_is_refused() {
    let site = Site::open();
    for (headers, status) in [
        ("Content-Length: 65537\r\n", 413),
        ("Content-Length: 99999999999999999999\r\n", 413),
        ("Content-Length: many\r\n", 400),
        ("Transfer-Encoding: chunked\r\n", 411),
    ] {
        assert_eq!(site.ask("POST", "symbol", headers).status, status, "{headers}");
    }
}

#[test]
fn head_works_and_other_methods_do_not() {
    let site = Site::open();
    for path in ["", "heap", "goroutine?debug=2", "cmdline", "symbol"] {
        let (get, head) = (site.get(path), site.ask("HEAD", path, ""));
        assert_eq!((head.status, head.bytes.len()), (200, 0), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
    }
    for (method, path, allowed) in [
        ("POST", "allocs", "GET, HEAD"),
        ("POST", "profile?seconds=1", "GET, HEAD"),
        ("PUT", "symbol", "GET, HEAD, POST"),
        ("DELETE", "block", "GET, HEAD, POST"),
    ] {
        let answer = site.ask(method, path, "");
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allowed)), "{method} {path}");
    }
}

#[test]
fn rates_are_set_by_post_and_shown() {
    let site = Site::open();
    for (path, body, line) in [
        ("block?rate=10000", "", "block profile: rate is 10000\n"),
        ("mutex", "fraction=5", "mutex profile: fraction is 5\n"),
        ("heap", "active=0", "heap profile: active is 0\n"),
    ] {
        let answer = post(&site, path, "", body);
        assert_eq!((answer.status, answer.body.as_str()), (200, line));
    }
    let index = site.get("").body;
    assert!(index.contains("name=\"rate\" size=\"12\" inputmode=\"numeric\" value=\"10000\""), "{index}");
    assert!(index.contains("name=\"fraction\" size=\"12\" inputmode=\"numeric\" value=\"5\""), "{index}");
    assert!(index.contains("name=\"active\" size=\"12\" inputmode=\"numeric\" value=\"0\""), "{index}");
    for (path, body) in [
        ("block", ""),
        ("block?rate=-1", ""),
        ("block?rate=x", ""),
        ("mutex", "rate=1"),
        ("heap", ""),
        ("heap?active=2", ""),
        ("heap?active=true", ""),
    ] {
        let answer = post(&site, path, "", body);
        assert_eq!((answer.status, answer.header("x-go-pprof")), (400, Some("1")), "{path} {body}: {}", answer.body);
    }
    assert!(site.get("").body.contains("value=\"10000\""), "a refused value changes nothing");
}

#[test]
fn a_page_of_another_site_sets_no_rate() {
    let site = Site::open();
    for origin in ["http://attacker.example", "null", "http://127.0.0.1:1"] {
        let answer = post(&site, "block?rate=1", &format!("Origin: {origin}\r\n"), "");
        assert_eq!(answer.status, 403, "{origin}");
        let answer = post(&site, "heap?active=0", &format!("Origin: {origin}\r\n"), "");
        assert_eq!(answer.status, 403, "{origin}");
    }
    assert!(superchat::profile::heap::is_sampled());
    assert_eq!(superchat::profile::waits::block_rate(), 0);
    let own = format!("Origin: http://{}\r\n", site.address);
    assert_eq!(post(&site, "block?rate=7", &own, "").status, 200);
}

#[test]
fn a_token_guards_every_path_and_may_be_a_password() {
    let site = Site::with_token("s3cret");
    for path in ["", "heap", "profile?seconds=1", "cmdline", "symbol", "flamegraph?seconds=1", "trace", "block?rate=1"]
    {
        for shown in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic b3BzOndyb25n\r\n"] {
            let answer = site.ask("GET", path, shown);
            assert_eq!(answer.status, 401, "{path} {shown}");
            assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"scd\", Bearer realm=\"scd\""));
        }
    }
    // echo -n ops:s3cret | base64
    for shown in ["Authorization: Bearer s3cret\r\n", "Authorization: Basic b3BzOnMzY3JldA==\r\n"] {
        assert_eq!(site.ask("GET", "cmdline", shown).status, 200, "{shown}");
    }
}

#[test]
fn a_public_address_whose_token_was_taken_away_serves_nobody() {
    let token = BearerToken::new(Some("s3cret".to_owned()));
    let options = ProfileOptions::new((Ipv4Addr::UNSPECIFIED, 0).into(), token.clone());
    let server = ProfileServer::start(options, metrics()).unwrap();
    let address = (Ipv4Addr::LOCALHOST, server.address().port()).into();
    assert_eq!(get(address, "/debug/pprof/heap").status, 401);
    token.replace(None);
    assert_eq!(get(address, "/debug/pprof/heap").status, 403);
    server.stop();
}

#[test]
fn a_public_address_without_a_token_and_a_taken_port_are_errors_at_start() {
    let start = |listen: SocketAddr, token: Option<&str>| {
        let token = BearerToken::new(token.map(str::to_owned));
        ProfileServer::start(ProfileOptions::new(listen, token), metrics())
    };
    let anywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    for token in [None, Some("")] {
        assert!(matches!(start(anywhere, token), Err(GuardError::Remote { name: "profiles", .. })));
    }
    let open = start(anywhere, Some("s3cret")).unwrap();
    assert!(open.address().ip().is_unspecified());
    let taken = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = taken.local_addr().unwrap();
    let error = start(address, None).err().unwrap().to_string();
    assert!(error.starts_with(&format!("cannot serve profiles on {address}: Address already in use")), "{error}");
    assert!(error.ends_with("free the port or set [admin] profile_listen"), "{error}");
}

#[test]
fn requests_are_counted_by_path() {
    let site = Site::open();
    let text = || site.metrics.render(Exposition::Text, 0).unwrap();
    let line = |path: &str, status: u16, count: usize| {
        let labels = format!("server=\"profiles\",path=\"{path}\",status=\"{status}\"");
        format!("superchat_http_requests_total{{{labels}}} {count}\n")
    };
    for name in ["", "heap", "profile", "flamegraph", "symbol"] {
        assert!(text().contains(&line(&format!("/debug/pprof/{name}"), 200, 0)), "{name}: {}", text());
    }
    site.get("cmdline");
    site.get("heap?seconds=x");
    site.get("nothing");
    // An answer is counted after its client has it.
    let expected = [line("/debug/pprof/cmdline", 200, 1), line("/debug/pprof/heap", 400, 1), line("other", 404, 1)];
    let counted = crate::support::clock::poll(crate::support::http::PATIENCE, || {
        let text = text();
        expected.iter().all(|line| text.contains(line)).then_some(())
    });
    assert_eq!(counted, Some(()), "{}", text());
    drop(Arc::clone(&site.metrics));
}

fn post(site: &Site, path: &str, headers: &str, body: &str) -> crate::support::http::Reply {
    let (host, length) = (site.address, body.len());
    let head =
        format!("POST /debug/pprof/{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n{headers}\r\n");
    exchange(host, &(head + body))
}
