//! The manual pages `scd(1)` and `superchat-config(5)`, and completions for shells.
//!
//! All are made from the definition of the command line and the table of settings, so they say what this binary does.

use clap::{Arg, Command};
use clap_complete::Shell;
use roff::{Inline, Roff, bold, italic, roman};

use crate::cli::{self, Section};
use crate::config::{self, Entry};

/// The page of a section, as `man` reads it.
pub fn page(section: Section) -> String {
    let page = match section {
        Section::Commands => commands(),
        Section::Files => configuration(),
    };
    page.render()
}

/// Completions of `scd`, as `shell` reads them.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::definition(), "scd", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

fn commands() -> Roff {
    let mut definition = cli::definition();
    definition.build();
    let mut page = head("SCD", Section::Commands, "scd - SuperChat server and its tools");
    page.control("SH", ["SYNOPSIS"]);
    synopsis(&mut page, &definition);
    page.control("SH", ["DESCRIPTION"]);
    page.text([roman(about(&definition))]);
    page.control("SH", ["OPTIONS"]);
    definition.get_arguments().for_each(|argument| option(&mut page, argument));
    page.control("SH", ["COMMANDS"]);
    subcommands(&mut page, &definition, &definition);
    page.control("SH", ["EXIT STATUS"]);
    page.text([roman(
        "0: done, or the server stopped as asked. 1: it could not be done. 2: wrong usage or configuration.",
    )]);
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("superchat-config"), roman("(5)")]);
    page
}

/// What can be called: a command, or those below it. Flags that `scd` itself takes stand above, once.
fn subcommands(page: &mut Roff, scd: &Command, command: &Command) {
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        if command.has_subcommands() {
            subcommands(page, scd, command);
            continue;
        }
        page.control("SS", [command.get_bin_name().unwrap_or_default()]);
        synopsis(page, command);
        page.control("PP", []);
        page.text([roman(about(command))]);
        let is_shared = |own: &&Arg| scd.get_arguments().any(|shared| shared.get_id() == own.get_id());
        let own = command.get_arguments().filter(|own| !is_shared(own));
        own.for_each(|argument| option(page, argument));
    }
}

fn synopsis(page: &mut Roff, command: &Command) {
    let usage = command.clone().render_usage().to_string();
    for (number, line) in usage.trim_start_matches("Usage:").lines().enumerate() {
        if number > 0 {
            page.control("br", []);
        }
        page.text([bold(line.trim())]);
    }
}

fn about(command: &Command) -> String {
    format!("{}.", command.get_about().map(ToString::to_string).unwrap_or_default())
}

fn option(page: &mut Roff, argument: &Arg) {
    let mut name = Vec::new();
    name.extend(argument.get_short().map(|short| bold(format!("-{short} "))));
    name.extend(argument.get_long().map(|long| bold(format!("--{long} "))));
    if argument.get_action().takes_values() {
        name.push(italic(argument.get_value_names().unwrap_or_default().join(" ")));
    }
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    item(page, name, format!("{help}."));
}

fn configuration() -> Roff {
    let mut page = head("SUPERCHAT-CONFIG", Section::Files, "superchat-config - configuration of the SuperChat server");
    page.control("SH", ["DESCRIPTION"]);
    markdown(&mut page, config::INTRODUCTION);
    for (section, about) in config::SECTIONS {
        page.control("SH", [format!("[{section}]").as_str()]);
        page.text(marked(&joined(about)));
        let entries = config::TABLE.iter().filter(|entry| entry.section == *section);
        entries.for_each(|entry| setting(&mut page, entry));
    }
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("scd"), roman("(1)")]);
    page
}

fn setting(page: &mut Roff, entry: &Entry) {
    let default = (entry.default)();
    let default = joined(&default.lines().collect::<Vec<_>>());
    item(page, vec![bold(entry.key), roman(format!(" = {default}"))], joined(entry.help));
    let flag = entry.rule.flag.map(|flag| format!("--{flag}"));
    let values = format!("Values: {}.", (entry.kind)(&entry.rule));
    let names: Vec<_> = entry.environment().into_iter().chain(flag).collect();
    let names = if names.is_empty() { String::new() } else { format!(" Also: {}.", names.join(", ")) };
    page.control("br", []);
    page.text(marked(&(values + &names)));
}

fn joined(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// No date is given, so that the same source makes the same page; an empty one would be taken for left out.
fn head(title: &str, section: Section, name: &str) -> Roff {
    let mut page = Roff::new();
    let source = concat!("scd ", env!("CARGO_PKG_VERSION"));
    page.control("TH", [title, section.number(), " ", source, "SuperChat"]);
    page.control("SH", ["NAME"]);
    page.text([roman(name)]);
    page
}

fn item(page: &mut Roff, name: Vec<Inline>, about: String) {
    page.control("TP", []);
    page.text(name);
    page.text(marked(&about));
}

/// Paragraphs, lists and headings; lines that belong to one of them are put together.
fn markdown(page: &mut Roff, text: &str) {
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            page.control("SH", [heading.to_uppercase().as_str()]);
        } else if let Some(entry) = line.strip_prefix("- ") {
            page.control("IP", ["\\(bu", "2"]);
            page.text(marked(entry));
        } else if !line.is_empty() {
            page.text(marked(line.trim_start()));
        }
    }
}

/// What stands between backticks is bold.
fn marked(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts.map(|(number, part)| if number % 2 == 1 { bold(part) } else { roman(part) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_flag_has_its_place_on_the_page() {
        let page = page(Section::Commands).replace("\\-", "-");
        let mut definition = cli::definition();
        definition.build();
        let mut commands = vec![&definition];
        while let Some(command) = commands.pop() {
            commands.extend(command.get_subcommands().filter(|below| below.get_name() != "help"));
            let name = command.get_bin_name().expect("built");
            assert!(command.has_subcommands() || page.contains(&format!("\n.SS \"{name}\"\n")), "{name}");
            for flag in command.get_arguments().filter_map(Arg::get_long) {
                assert!(page.contains(&format!("--{flag}")), "{name} --{flag}");
            }
        }
    }

    #[test]
    fn every_setting_is_explained_with_its_names() {
        let page = page(Section::Files).replace("\\-", "-");
        for entry in config::TABLE {
            assert!(page.contains(&format!("\\fB{}\\fR = ", entry.key)), "{}", entry.name());
            for name in entry.environment() {
                assert!(page.contains(&name), "{name}");
            }
        }
    }

    #[test]
    fn completions_of_every_shell_know_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completions(shell);
            assert!(script.contains("check-config") && script.contains("server-name"), "{shell}");
        }
    }

    #[test]
    fn what_begins_with_a_dot_is_no_request_to_the_formatter() {
        let mut page = Roff::new();
        markdown(&mut page, "- .config stays\n  'as it is'");
        assert!(page.render().lines().all(|line| !line.starts_with(".config") && !line.starts_with('\'')), "{page:?}");
    }
}
