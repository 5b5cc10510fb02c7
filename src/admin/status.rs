//! The status page: the same facts for a person and, as JSON, for a script.

use crate::metrics::{Metrics, ProcessStats};

use super::health::{Health, HealthBody, Pulse};

/// Everything on the page.
#[derive(Debug, serde::Serialize)]
pub(super) struct Status {
    #[serde(flatten)]
    health: HealthBody,
    live: bool,
    ready: bool,
    /// What stands against being ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_ready: Option<String>,
    commit: &'static str,
    shards: Vec<ShardStatus>,
    writer: Pulse,
    process: ProcessStats,
}

#[derive(Debug, serde::Serialize)]
struct ShardStatus {
    shard: usize,
    sessions: u64,
    #[serde(flatten)]
    pulse: Pulse,
}

impl Status {
    pub(super) fn now(health: &Health, metrics: &Metrics, now_ms: u64) -> Self {
        let not_ready = health.ready(now_ms).err();
        let sessions = metrics.shards().iter().map(|shard| shard.sessions()).chain(std::iter::repeat(0));
        let shards = health.pulses(now_ms).into_iter().zip(sessions).enumerate();
        Self {
            health: health.body(now_ms),
            live: health.live(now_ms).is_ok(),
            ready: not_ready.is_none(),
            not_ready,
            commit: metrics.build().commit,
            shards: shards.map(|(shard, (pulse, sessions))| ShardStatus { shard, sessions, pulse }).collect(),
            writer: health.writer(now_ms),
            process: ProcessStats::read(),
        }
    }

    /// A page that needs nothing from anywhere else and comes back by itself every five seconds.
    pub(super) fn html(&self) -> String {
        let name = if self.health.server_name.is_empty() { "SuperChat" } else { &self.health.server_name };
        let title = escape(name);
        let verdict = if self.ready { "ready" } else { "not ready" };
        let body = format!(
            "<header><h1>{title}</h1><p class=\"{}\">{verdict}</p></header>\n{}{}{}",
            if self.ready { "good" } else { "bad" },
            self.not_ready
                .iter()
                .map(|reason| format!("<p class=\"reason\">{}</p>\n", escape(reason)))
                .collect::<String>(),
            self.facts(),
            self.threads(),
        );
        page(&format!("{title}: {verdict}"), true, &body)
    }

    fn facts(&self) -> String {
        let HealthBody { version, durability, last_backup, directory_enabled, .. } = &self.health;
        let rows = [
            ("up for", duration(self.health.uptime)),
            ("sessions", self.health.sessions.to_string()),
            ("channels", self.health.channels.to_string()),
            ("database", self.health.reason.clone().unwrap_or_else(|| "ok".to_owned())),
            ("durability", or_dash(durability)),
            ("last backup", last_backup.clone().unwrap_or_else(|| "none".to_owned())),
            ("directory", if *directory_enabled { "on" } else { "off" }.to_owned()),
            ("memory", self.process.resident_bytes.map_or_else(|| "–".to_owned(), bytes)),
            ("descriptors", of(self.process.open_fds, self.process.max_fds)),
            ("threads", self.process.threads.map_or_else(|| "–".to_owned(), |count| count.to_string())),
            ("cpu time", self.process.cpu_seconds.map_or_else(|| "–".to_owned(), |seconds| format!("{seconds:.2} s"))),
            ("version", format!("{version} ({})", self.commit)),
        ];
        let rows = rows.map(|(name, value)| format!("<tr><th>{name}</th><td>{}</td></tr>\n", escape(&value)));
        format!("<table>\n{}</table>\n", rows.concat())
    }

    fn threads(&self) -> String {
        let shards = self
            .shards
            .iter()
            .map(|shard| (format!("shard {}", shard.shard), shard.sessions.to_string(), &shard.pulse));
        let writer = std::iter::once(("writer".to_owned(), String::new(), &self.writer));
        let row = |(name, sessions, pulse): (String, String, &Pulse)| {
            let (class, state) = if pulse.alive { ("good", "alive") } else { ("bad", "stuck or gone") };
            format!(
                "<tr><th>{name}</th><td>{sessions}</td><td>{} ms ago</td><td class=\"{class}\">{state}</td></tr>\n",
                pulse.last_beat_ms
            )
        };
        let rows: String = shards.chain(writer).map(row).collect();
        format!("<table>\n<tr><th>thread</th><th>sessions</th><th>last seen</th><th>state</th></tr>\n{rows}</table>\n")
    }
}

const STYLE: &str = "\
:root { color-scheme: light dark; --good: light-dark(#17692f, #6fcf8b); --bad: light-dark(#b3261e, #ff8a80); }\n\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }\n\
header { display: flex; gap: 1rem; align-items: baseline; flex-wrap: wrap; }\n\
h1 { margin: 0; font-size: 1.6rem; overflow-wrap: anywhere; } header p { margin: 0; font-weight: 600; }\n\
table { border-collapse: collapse; width: 100%; margin: 1.5rem 0; font-variant-numeric: tabular-nums; }\n\
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }\n\
th { font-weight: 500; opacity: .75; } .good { color: var(--good); } .bad, .reason { color: var(--bad); }\n\
li { margin: .4rem 0; }\n";

/// The frame of a page; `title` and `body` are HTML already.
pub(super) fn page(title: &str, refresh: bool, body: &str) -> String {
    let refresh = if refresh { "<meta http-equiv=\"refresh\" content=\"5\">\n" } else { "" };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n{refresh}\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "–".to_owned() } else { text.to_owned() }
}

fn of(part: Option<u64>, whole: Option<u64>) -> String {
    let text =
        |number: Option<u64>, absent: &str| number.map_or_else(|| absent.to_owned(), |number| number.to_string());
    format!("{} of {}", text(part, "–"), text(whole, "unlimited"))
}

fn bytes(count: u64) -> String {
    format!("{:.1} MiB", count as f64 / f64::from(1 << 20))
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_in_the_two_largest_units() {
        for (seconds, text) in [(59, "59 s"), (3599, "59 min"), (7260, "2 h 1 min"), (90_000, "1 d 1 h")] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn a_hostile_server_name_stays_text() {
        assert_eq!(escape("<script>&\""), "&lt;script&gt;&amp;&quot;");
    }
}
