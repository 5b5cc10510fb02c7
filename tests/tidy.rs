//! What can be checked of habits and documents by reading the tree itself.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use superchat::cli::{self, Stop};

/// No file is longer: what nobody reads whole, nobody understands.
const LINES_MAX: usize = 900;
/// Tests are looked up by name, not read whole.
const TEST_LINES_MAX: usize = 1500;

const README: &str = include_str!("../README.md");
const ARCHITECTURE: &str = include_str!("../ARCHITECTURE.md");

/// One file of the tree.
struct Source {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// Without comments and without the file's own tests: what the program consists of.
    fn code(&self) -> String {
        let program = self.text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
        let lines = program.lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.flat_map(|line| [line, "\n"]).collect()
    }

    fn is_below(&self, folders: &[&str]) -> bool {
        folders.iter().any(|folder| self.path.starts_with(folder))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file that is part of the project.
fn tree() -> Vec<Source> {
    const IGNORED: [&str; 5] = [".git", "target", "corpus", "artifacts", "proptest-regressions"];
    let mut folders = vec![root().to_owned()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let ignored = path.file_name().is_some_and(|name| IGNORED.iter().any(|ignored| name == *ignored));
            match path.is_dir() {
                _ if ignored => {}
                true => folders.push(path),
                false => sources.extend(source(&path)),
            }
        }
    }
    assert!(sources.len() > 100, "the tree is hardly there");
    sources
}

fn source(path: &Path) -> Option<Source> {
    let text = String::from_utf8(fs::read(path).unwrap()).ok()?;
    let path = path.strip_prefix(root()).unwrap().to_str()?.to_owned();
    Some(Source { path, text })
}

/// Files of Rust below the given folders.
fn rust(folders: &[&str]) -> Vec<Source> {
    let mut sources = tree();
    sources.retain(|source| source.path.ends_with(".rs") && source.is_below(folders));
    assert!(!sources.is_empty(), "nothing below {folders:?}");
    sources
}

/// Fails with all findings at once.
fn check(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

/// Every place where one of `words` stands in the code of `sources`.
fn uses(sources: &[Source], words: &[&str]) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources {
        let code = source.code();
        let found = words.iter().filter(|word| code.contains(**word));
        findings.extend(found.map(|word| format!("{} uses {word}", source.path)));
    }
    findings
}

/// The identifiers of `text`, in order.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

fn is_word(text: &str) -> bool {
    words(text).next() == Some(text)
}

/// What stands in backticks in `text`, outside fenced blocks.
fn quoted(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|prose| prose.split('`').skip(1).step_by(2)).collect()
}

/// What a document says below a heading.
fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let (_, rest) = document.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    rest.split("\n## ").next().unwrap_or_default()
}

/// The cells of the rows of the tables in `text`, without heads.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<&str> = text.lines().collect();
    let is_row =
        |at: &usize| lines[*at].starts_with("| ") && !lines.get(at + 1).is_some_and(|next| next.starts_with("|--"));
    let rows = (0..lines.len()).filter(is_row);
    rows.map(|at| lines[at].trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// What is written for people about all of it, and for operators below `docs/`.
fn documents() -> Vec<Source> {
    let is_document = |path: &str| {
        ["README.md", "ARCHITECTURE.md"].contains(&path) || path.starts_with("docs/") && path.ends_with(".md")
    };
    let mut sources = tree();
    sources.retain(|source| is_document(&source.path));
    assert!(sources.len() > 4, "the documents are elsewhere");
    sources
}

/// Folders and files of the root: how a path in a document begins.
fn top_level() -> BTreeSet<String> {
    tree().iter().filter_map(|source| source.path.split_once('/')).map(|(folder, _)| format!("{folder}/")).collect()
}

#[test]
fn wire_does_no_input_or_output_and_knows_no_runtime() {
    check(uses(&rust(&["src/wire/"]), &["tokio", "std::net", "std::fs", "std::thread", "std::io", "std::time"]));
}

#[test]
fn the_store_knows_neither_sessions_nor_the_wire() {
    let others = ["crate::shard", "crate::handlers", "crate::net", "crate::wire", "tokio"];
    check(uses(&rust(&["src/store/"]), &others));
}

#[test]
fn a_shard_and_its_handlers_do_no_input_or_output_and_ask_for_no_time() {
    let forbidden = ["tokio::net", "tokio::time", "std::fs", "clock::now", "clock::wall", "clock::monotonic", ".await"];
    let mut sources = rust(&["src/shard/", "src/handlers/"]);
    // The bus is where shards are woken from outside.
    sources.retain(|source| source.path != "src/shard/event.rs");
    check(uses(&sources, &forbidden));
}

#[test]
fn sql_stands_only_in_the_sqlite_backend() {
    let mut sources = rust(&["src/"]);
    sources.retain(|source| !source.is_below(&["src/store/sqlite/"]));
    check(uses(
        &sources,
        &["SELECT ", "INSERT INTO", "CREATE TABLE", "DELETE FROM", "PRAGMA ", "rusqlite::Connection"],
    ));
}

#[test]
fn modules_use_only_what_the_architecture_allows_them() {
    let section = section(ARCHITECTURE, "Modules");
    let mut findings = Vec::new();
    let mut listed = BTreeSet::new();
    for row in rows(section) {
        let [module, allowed, ..] = row[..] else { panic!("{row:?}") };
        let module = module.trim_matches('`');
        listed.insert(module.to_owned());
        let allowed = quoted(allowed);
        for source in rust(&["src/"]) {
            if source.path != format!("src/{module}.rs") && !source.path.starts_with(&format!("src/{module}/")) {
                continue;
            }
            let code = source.code();
            let used: BTreeSet<&str> = code
                .split("crate::")
                .skip(1)
                .filter_map(|rest| words(rest).next())
                .filter(|used| *used != module)
                .collect();
            let strange = used.into_iter().filter(|used| !allowed.contains(used));
            findings
                .extend(strange.map(|used| format!("{} uses {used}, the architecture does not say so", source.path)));
        }
    }
    let modules = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let modules: BTreeSet<String> = modules
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .map(str::to_owned)
        .collect();
    assert_eq!(listed, modules, "the table of modules and src/lib.rs differ");
    check(findings);
}

#[test]
fn the_steps_of_a_message_are_where_the_architecture_says() {
    let rows = rows(section(ARCHITECTURE, "The way of a message"));
    let steps: Vec<&str> = rows.iter().map(|row| row[0]).filter(|step| !step.is_empty()).collect();
    assert_eq!(steps, ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]);
    let mut findings = Vec::new();
    for row in rows {
        let [path] = quoted(row[1])[..] else { panic!("{row:?}") };
        let code = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let defined: BTreeSet<&str> = words(&code)
            .zip(words(&code).skip(1))
            .filter(|(keyword, _)| ["fn", "struct", "enum", "trait", "const"].contains(keyword))
            .map(|(_, name)| name)
            .collect();
        let symbols = quoted(row[2]);
        assert!(!symbols.is_empty(), "{row:?}");
        let gone = symbols.into_iter().filter(|symbol| !defined.contains(symbol));
        findings.extend(gone.map(|symbol| format!("{path} defines no {symbol}")));
    }
    check(findings);
}

#[test]
fn constants_types_and_threads_that_the_architecture_names_exist() {
    let code: String = rust(&["src/"]).iter().map(Source::code).collect();
    let known: BTreeSet<&str> = words(&code).collect();
    let names = quoted(ARCHITECTURE);
    let (threads, names): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.starts_with("scd-"));
    assert!(threads.len() >= 5 && names.len() > 50, "hardly anything is named");
    let is_symbol = |name: &str| name.starts_with(char::is_uppercase) && name.split("::").all(is_word);
    let is_known = |name: &str| name.split("::").all(|part| known.contains(part));
    let gone = names.iter().filter(|name| is_symbol(name) && !is_known(name));
    let unstarted = threads.iter().filter(|name| !code.contains(&format!("\"{}", name.trim_end_matches('N'))));
    check(gone.chain(unstarted).map(|name| format!("ARCHITECTURE.md names {name}, which is not there")).collect());
}

#[test]
fn dependencies_are_used_and_explained() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let names = |table: &str| manifest[table].as_table().unwrap().keys().cloned().collect::<Vec<_>>();
    let code_below = |folders| rust(folders).iter().map(Source::code).collect::<String>();
    let (program, tests) = (code_below(&["src/"]), code_below(&["src/", "tests/", "benches/"]));
    let own_tests: String = rust(&["src/"]).iter().map(|source| source.text.clone()).collect();
    let (mut findings, explained) = (Vec::new(), quoted(section(ARCHITECTURE, "Dependencies")));
    for (table, code) in [("dependencies", program), ("dev-dependencies", tests + &own_tests)] {
        for name in names(table) {
            if !code.contains(&format!("{}::", name.replace('-', "_"))) {
                findings.push(format!("[{table}] {name} is used nowhere"));
            }
            if !explained.contains(&name.as_str()) {
                findings.push(format!("[{table}] {name} is not explained in ARCHITECTURE.md"));
            }
        }
    }
    check(findings);
}

#[test]
fn every_bound_has_its_reason() {
    let limits = fs::read_to_string(root().join("src/limits.rs")).unwrap();
    let lines: Vec<&str> = limits.lines().collect();
    let bounds: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].starts_with("pub const ")).collect();
    assert!(bounds.len() > 10, "the bounds are elsewhere");
    let bare = bounds.into_iter().filter(|at| !lines[at - 1].starts_with("///"));
    check(bare.map(|at| format!("src/limits.rs: no reason for {}", lines[at])).collect());
}

#[test]
fn no_file_is_too_long_to_be_read() {
    const READ: [&str; 6] = [".rs", ".md", ".sql", ".sh", ".toml", ".yml"];
    let mut sources = tree();
    sources.retain(|source| READ.iter().any(|end| source.path.ends_with(end)));
    let bound = |source: &Source| if source.is_below(&["tests/"]) { TEST_LINES_MAX } else { LINES_MAX };
    let length = |source: &Source| source.text.lines().count();
    let long = sources.iter().filter(|source| length(source) > bound(source));
    check(
        long.map(|source| format!("{}: {} lines, {} are allowed", source.path, length(source), bound(source)))
            .collect(),
    );
}

#[test]
fn paths_in_the_documents_exist() {
    let folders = top_level();
    let is_path = |word: &&str| folders.iter().any(|folder| word.starts_with(folder.as_str()));
    let mut findings = Vec::new();
    for Source { path: document, text } in documents() {
        let separators =
            |c: char| c.is_whitespace() || matches!(c, '`' | '(' | ')' | '[' | ']' | '|' | ',' | ';' | ':');
        let named: BTreeSet<&str> =
            text.split(separators).filter(is_path).map(|word| word.trim_end_matches('.')).collect();
        assert!(document.starts_with("docs/") || named.len() > 3, "{document} names hardly any path");
        // What is built is not there before it is built, secrets are never there, and a pattern stands for several.
        let is_made = |path: &&str| path.starts_with("target/") || path.starts_with("deploy/secrets/");
        let named = named.into_iter().filter(|path| !is_made(path) && !path.contains('*'));
        let gone = named.filter(|path| !root().join(path).exists());
        findings.extend(gone.map(|path| format!("{document} names {path}, which is not there")));
    }
    check(findings);
}

/// What links of Markdown in `text` lead to, without those to the web.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|link| !link.contains("://"))
}

/// As GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[test]
fn links_between_the_documents_lead_somewhere_and_the_index_has_them_all() {
    let documents = documents();
    let mut findings = Vec::new();
    for Source { path, text } in &documents {
        for link in links(text) {
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let file =
                if file.is_empty() { root().join(path) } else { root().join(path).with_file_name("").join(file) };
            let target = fs::read_to_string(&file).unwrap_or_default();
            let mut headings = target.lines().filter(|line| line.starts_with('#'));
            if !file.exists() || !place.is_empty() && !headings.any(|heading| anchor(heading) == place) {
                findings.push(format!("{path}: {link} leads nowhere"));
            }
        }
    }
    let index = documents.iter().find(|document| document.path == "docs/README.md").unwrap();
    let indexed: Vec<_> = links(&index.text).collect();
    let names = documents.iter().filter_map(|document| document.path.strip_prefix("docs/"));
    let missing = names.filter(|name| *name != "README.md" && !indexed.contains(name));
    findings.extend(missing.map(|name| format!("docs/README.md does not name {name}")));
    check(findings);
}

#[test]
fn commands_in_the_documents_are_understood() {
    for document in documents() {
        let blocks: String = document.text.split("```").skip(1).step_by(2).collect();
        let mut commands = blocks.lines().filter(|line| line.starts_with("scd ") || line.starts_with("scripts/"));
        let wrong = commands.find(|line| match line.strip_prefix("scd ") {
            Some(_) => matches!(cli::parse(arguments(line)), Err(Stop::Usage(_))),
            None => !root().join(line.split_whitespace().next().unwrap_or_default()).exists(),
        });
        assert_eq!(wrong, None, "{}", document.path);
    }
}

fn arguments(line: &str) -> impl Iterator<Item = OsString> {
    line.split_whitespace().map(|word| OsString::from(word.trim_matches('"')))
}

#[test]
fn commands_in_the_readme_are_understood() {
    let blocks: String = README.split("```").skip(1).step_by(2).collect();
    let is_known = |line: &&str| {
        let command = line.rsplit("| ").next().unwrap_or_default();
        !matches!(cli::parse(arguments(command)), Err(Stop::Usage(_)))
    };
    let commands: Vec<&str> = blocks.lines().filter(|line| words(line).any(|word| word == "scd")).collect();
    assert!(commands.len() > 5, "the README shows hardly any command");
    let wrong: Vec<_> = commands.into_iter().filter(|line| !is_known(line)).collect();
    check(wrong.into_iter().map(|line| format!("README.md: scd does not understand: {line}")).collect());
}

/// Absolute paths lead to what every Linux system, or every deployment of ours, has.
#[test]
fn no_file_names_a_place_on_somebodys_machine() {
    const KNOWN: &[&str] = &[
        "-", "api", "bin", "data", "debug", "dev", "etc", "lib", "loki", "metrics", "proc", "run", "sys", "tmp", "usr",
        "var", "x",
    ];
    let folders = top_level();
    let is_known = |first: &str| KNOWN.contains(&first) || folders.contains(&format!("{first}/"));
    let mut findings = Vec::new();
    for source in tree().iter().filter(|source| !source.is_below(&["tests/data/"])) {
        for (number, line) in source.text.lines().enumerate() {
            let strange = absolute_paths(line).filter(|path| !path.split('/').nth(1).is_some_and(is_known));
            findings.extend(strange.map(|path| format!("{}:{}: {path}", source.path, number + 1)));
        }
    }
    check(findings);
}

/// Words of at least two steps that begin with a slash.
fn absolute_paths(line: &str) -> impl Iterator<Item = &str> {
    let between =
        |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '(' | ')' | '=' | ',' | ';' | '<' | '>');
    let is_step = |step: &str| !step.is_empty() && step.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    line.split(between).filter(move |word| {
        let mut steps = word.split('/');
        steps.next() == Some("") && steps.next().is_some_and(is_step) && steps.next().is_some_and(is_step)
    })
}

#[test]
fn every_script_can_be_run_and_stops_at_the_first_failure() {
    use std::os::unix::fs::PermissionsExt as _;
    let scripts: Vec<Source> = tree().into_iter().filter(|source| source.text.starts_with("#!/")).collect();
    assert!(scripts.len() > 3, "the scripts are elsewhere");
    let mode = |source: &Source| fs::metadata(PathBuf::from(root()).join(&source.path)).unwrap().permissions().mode();
    let wrong = scripts.iter().filter(|source| mode(source) & 0o111 == 0 || !source.text.contains("\nset -eu"));
    check(wrong.map(|source| format!("{}: not executable, or without set -eu", source.path)).collect());
}
