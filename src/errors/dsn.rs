//! The address reports go to: `https://<key>@<host>[:port][/path]/<project>`.

use std::fmt;
use std::str::FromStr;

/// A checked address. Its key is no great secret, but no text for logs either.
#[derive(Clone, PartialEq, Eq)]
pub struct Dsn {
    endpoint: String,
    key: String,
}

/// What is wrong with an address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("sentry_dsn: {0}; it has the form https://KEY@HOST/PROJECT")]
pub struct DsnError(&'static str);

impl Dsn {
    /// Where envelopes are posted to.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Who posts them.
    pub(super) fn key(&self) -> &str {
        &self.key
    }
}

impl FromStr for Dsn {
    type Err = DsnError;

    fn from_str(text: &str) -> Result<Self, DsnError> {
        let (scheme, rest) = text.trim().split_once("://").ok_or(DsnError("it has no scheme"))?;
        if !["http", "https"].contains(&scheme) {
            return Err(DsnError("its scheme is neither http nor https"));
        }
        let (credentials, place) = rest.rsplit_once('@').ok_or(DsnError("it has no key"))?;
        // Very old servers had a secret behind the key.
        let key = credentials.split(':').next().unwrap_or_default();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(DsnError("its key is not one"));
        }
        let (place, project) = place.trim_end_matches('/').rsplit_once('/').ok_or(DsnError("it has no project"))?;
        let host = place.split('/').next().unwrap_or_default();
        if host.is_empty() || project.is_empty() || !place.bytes().chain(project.bytes()).all(is_plain) {
            return Err(DsnError("its host or project is not one"));
        }
        let (host, path) = place.split_at(host.len());
        Ok(Self { endpoint: format!("{scheme}://{host}{path}/api/{project}/envelope/"), key: key.to_owned() })
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/[]".contains(&byte)
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dsn").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_leads_to_its_endpoint() {
        for (text, endpoint, key) in [
            ("https://abc@o1.example.org/42", "https://o1.example.org/api/42/envelope/", "abc"),
            ("http://abc:old@127.0.0.1:8000/7/", "http://127.0.0.1:8000/api/7/envelope/", "abc"),
            ("https://a1@[::1]:9/deep/er/proj-1", "https://[::1]:9/deep/er/api/proj-1/envelope/", "a1"),
        ] {
            let dsn: Dsn = text.parse().unwrap();
            assert_eq!((dsn.endpoint(), dsn.key()), (endpoint, key), "{text}");
            assert!(!format!("{dsn:?}").contains("abc"));
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_quoted() {
        for text in [
            "",
            "abc",
            "ftp://abc@host/1",
            "https://host/1",
            "https://@host/1",
            "https://a b@host/1",
            "https://abc@host",
            "https://abc@/1",
            "https://abc@ho st/1",
            "https://abc@host/1?x=\r\nHost: evil",
        ] {
            let error = text.parse::<Dsn>().unwrap_err().to_string();
            assert!(error.starts_with("sentry_dsn: it") && !error.contains("host/1"), "{text}: {error}");
        }
    }
}
