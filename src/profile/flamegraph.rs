//! A profile as a picture: an SVG that a browser opens, zooms and searches without anything else.

use std::io;

use inferno::flamegraph::{Direction, Options, from_lines};

use super::text::Names;
use super::{Label, Profile, Sample};

/// Draws one value of every sample, given by its place among the [`Profile::sample_types`]. What became less, in a
/// difference, has no place in such a picture.
///
/// # Errors
/// When the drawing fails, which leaves nothing half drawn.
pub fn svg(profile: &Profile, value: usize) -> io::Result<Vec<u8>> {
    let names = Names::of(profile);
    let lines: Vec<String> = profile.samples.iter().filter_map(|sample| folded(sample, value, &names)).collect();
    let mut options = Options::default();
    options.title = title(profile, value);
    options.count_name = profile.sample_types.get(value).map_or("samples", |known| known.unit).to_owned();
    // A browser shows the top of a long picture first: that is where a stack begins.
    options.direction = Direction::Inverted;
    // Equal names get equal colours, in every picture.
    options.hash = true;
    let mut picture = Vec::new();
    if lines.is_empty() {
        // The drawing of nothing is an error there; an idle server is none.
        options.title = format!("{}: nothing was recorded", options.title);
        from_lines(&mut options, ["nothing 1"], &mut picture)?;
    } else {
        from_lines(&mut options, lines.iter().map(String::as_str), &mut picture)?;
    }
    Ok(picture)
}

fn title(profile: &Profile, value: usize) -> String {
    let kind = profile.sample_types.get(value).map_or("", |known| known.kind);
    match profile.duration_nanos {
        0 => kind.to_owned(),
        nanoseconds => format!("{kind} over {:.1} s", nanoseconds as f64 / 1e9),
    }
}

/// One sample in the form that the drawing reads: the thread, if it is known, then functions from the outermost on.
fn folded(sample: &Sample, value: usize, names: &Names) -> Option<String> {
    let weight = sample.values.get(value).filter(|weight| **weight > 0)?;
    let thread = sample.labels.iter().find_map(|(name, label)| match label {
        Label::Text(thread) if *name == "thread" => Some(thread.clone()),
        _ => None,
    });
    let functions = names.shown(&sample.stack).into_iter().map(|(_, line)| line.function.clone());
    let mut stack: Vec<String> = functions.chain(thread).collect();
    stack.reverse();
    // A semicolon ends a name there; in names of Rust it stands in arrays.
    let stack: Vec<String> = stack.into_iter().map(|name| name.replace(';', ",")).collect();
    Some(format!("{} {weight}", stack.join(";")))
}
