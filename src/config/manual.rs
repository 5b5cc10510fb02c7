//! Texts made from the table: the example file, the manual page, the report of `check-config`.

use super::table::{Entry, SECTIONS, TABLE};
use super::{ConfigFile, Loaded};

/// The example configuration file: every key, explained and commented out. Settings start with `#key`, explanations
/// with `# `, so removing the `#` of every setting changes nothing.
pub fn example() -> String {
    let sections = SECTIONS.iter().map(|(section, about)| {
        let entries: String = entries_of(section).map(example_entry).collect();
        format!("\n{}[{section}]\n{entries}", commented(about))
    });
    format!("{}{}", commented(EXAMPLE_HEAD), sections.collect::<String>())
}

const EXAMPLE_HEAD: &[&str] = &[
    "Configuration of scd, the SuperChat server.",
    "",
    "Nothing here is needed: what stays commented out has the default shown. A flag outweighs an environment",
    "variable, which outweighs this file. Numbers: 0 means the default where it is not said to mean off.",
    "`scd check-config` shows what counts and why.",
];

fn example_entry(entry: &Entry) -> String {
    let default = (entry.default)();
    let value = entry.rule.sample.unwrap_or(&default);
    let setting: String = format!("{} = {value}", entry.key).lines().map(|line| format!("#{line}\n")).collect();
    format!("\n{}# {}.\n{setting}", commented(entry.help), facts(entry).join(". "))
}

fn facts(entry: &Entry) -> Vec<String> {
    let kind = (entry.kind)(&entry.rule);
    let names = entry.environment();
    let environment = (!names.is_empty()).then(|| format!("Environment: {}", names.join(", ")));
    let flag = entry.rule.flag.map(|flag| format!("Flag: --{flag}"));
    let live = entry.rule.live.then(|| LIVE.to_owned());
    [Some(format!("Value: {}", kind.replace('`', ""))), environment, flag, live].into_iter().flatten().collect()
}

const LIVE: &str = "Changed by a reload";

fn commented(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("# {}", line.trim()).trim_end().to_owned() + "\n").collect()
}

fn entries_of(section: &str) -> impl Iterator<Item = &'static Entry> {
    TABLE.iter().copied().filter(move |entry| entry.section == section)
}

/// The page on configuration in `docs/configuration.md`.
pub fn markdown() -> String {
    let sections = SECTIONS.iter().map(|(section, about)| {
        let rows: String = entries_of(section).map(markdown_row).collect();
        format!("\n## [{section}]\n\n{}\n\n{MARKDOWN_COLUMNS}{rows}", sentence(about))
    });
    format!("{MARKDOWN_HEAD}{INTRODUCTION}{}", sections.collect::<String>())
}

const MARKDOWN_HEAD: &str = "\
# Configuration

<!-- Made from the table of settings: scd config-example --markdown > docs/configuration.md -->

";

/// What holds for all settings, in the Markdown of paragraphs, lists and headings of the second level only.
pub const INTRODUCTION: &str = "\
No configuration is needed. A flag outweighs an environment variable, which outweighs the file, which outweighs the
default, key by key. `scd check-config` prints every setting with the value that counts and where it comes from;
`scd config-example` prints a file with every key commented out.

## Files

- The file is the one that `--config` or `SUPERCHAT_CONFIG` names. If that one is missing it is written, with every key
  commented out. Otherwise it is `$XDG_CONFIG_HOME/superchat/config.toml` or `~/.config/superchat/config.toml`, if there
  is one.
- Data lies in `$STATE_DIRECTORY`, else `$XDG_DATA_HOME/superchat`, else `~/.local/share/superchat`.
- Configuration, database and SSH host key are looked for in `~/.superchat` too, where the existing server keeps them,
  and used there if nothing is at the places above and no setting names them.
- A leading `~/` in a path is the home directory.

## Rules

- Unknown sections and keys, texts that are not numbers, negative numbers and ports above 65535 stop the start. Numbers
  above their largest value are lowered to it with a warning.
- 0 means off where the table says so, otherwise the default. An empty text is the default. An empty list is empty.
- An environment variable that is set to nothing counts as unset. Lists are separated by commas there.
- A reload (`systemctl reload superchat`, SIGHUP) changes the settings marked as live; others that differ are named in the
  log and wait for the next start. A file with an error changes nothing.
- Keys that other versions of the server had only cause a warning.
";

const MARKDOWN_COLUMNS: &str = "\
| key | default | values | live | environment, flag | meaning |
|---|---|---|---|---|---|
";

fn markdown_row(entry: &Entry) -> String {
    let default = (entry.default)().split_whitespace().collect::<Vec<_>>().join(" ");
    let flag = entry.rule.flag.map(|flag| format!("--{flag}"));
    let names = entry.environment().into_iter().chain(flag).map(|name| format!("`{name}`"));
    let names = names.collect::<Vec<_>>().join(" ");
    let kind = (entry.kind)(&entry.rule);
    let live = if entry.rule.live { "yes" } else { "" };
    format!("| `{}` | `{default}` | {kind} | {live} | {names} | {} |\n", entry.key, sentence(entry.help))
}

fn sentence(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// Every setting with its value and origin, aligned, in the form of the file.
pub(super) fn report(loaded: &Loaded) -> String {
    let file = match &loaded.file {
        ConfigFile::Absent => "none".to_owned(),
        ConfigFile::Missing(path) => format!("{} (does not exist)", path.display()),
        ConfigFile::Read(path) => path.display().to_string(),
    };
    let rows = loaded.settings.rows();
    let sections = SECTIONS.iter().map(|(section, _)| report_section(section, &rows, loaded));
    let head = format!("# configuration file: {file}\n# data directory: {}\n", loaded.data_directory.display());
    head + &sections.collect::<String>()
}

fn report_section(section: &str, rows: &[(&'static Entry, String)], loaded: &Loaded) -> String {
    let rows = || rows.iter().filter(|(entry, _)| entry.section == section);
    let key_width = rows().map(|(entry, _)| entry.key.len()).max().unwrap_or_default();
    let one_line = |value: &str| if value.contains('\n') { 0 } else { value.chars().count() };
    let value_width = rows().map(|(_, value)| one_line(value)).max().unwrap_or_default();
    let lines = rows().map(|(entry, value)| {
        let origin = loaded.origins.of(entry.section, entry.key);
        format!("{:key_width$} = {value:value_width$}  # {origin}\n", entry.key)
    });
    format!("\n[{section}]\n{}", lines.collect::<String>())
}

/// `text` as a TOML string of one line.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            letter if letter.is_control() => out += &format!("\\u{:04X}", u32::from(letter)),
            letter => out.push(letter),
        }
    }
    out.push('"');
    out
}

/// `entries` as a TOML list of strings.
pub(super) fn quoted_list<T: ToString>(entries: &[T]) -> String {
    let entries: Vec<_> = entries.iter().map(|entry| quoted(&entry.to_string())).collect();
    format!("[{}]", entries.join(", "))
}
