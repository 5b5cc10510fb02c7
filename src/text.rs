//! Rules for texts: nicknames, channel names, control characters (BEHAVIOUR.md 2.0, 2.8).

use bytes::Bytes;

use crate::store::Name;

/// A nickname a client may choose: `[a-zA-Z0-9_-]{3,20}`; `None` when it breaks the rule.
#[must_use]
pub fn nickname(text: &[u8]) -> Option<Name> {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    ((3..=20).contains(&text.len()) && text.iter().all(legal)).then(|| Name::from(text))
}

/// Whether a channel may be called this; its length has been checked before. `dm_` is kept for direct messages.
#[must_use]
pub fn is_channel_name(name: &[u8]) -> bool {
    let Ok(name) = std::str::from_utf8(name) else { return false };
    let refused = |c: char| c.is_control() || c.is_whitespace() || c == '/';
    !name.starts_with('#') && !name.starts_with("dm_") && !name.contains(refused)
}

/// The text without C0 (tab and newline excepted), DEL, and C1 written as UTF-8; anything else stays, broken UTF-8 too.
#[must_use]
pub fn sanitized(text: &[u8]) -> Bytes {
    match text.iter().position(|byte| is_suspicious(*byte)) {
        None => Bytes::copy_from_slice(text),
        Some(clean) => {
            let mut out = Vec::with_capacity(text.len());
            out.extend_from_slice(&text[..clean]);
            strip_controls(&text[clean..], &mut out);
            out.into()
        }
    }
}

fn is_suspicious(byte: u8) -> bool {
    (byte < 0x20 && !matches!(byte, b'\t' | b'\n')) || byte == 0x7f || byte == 0xc2
}

fn strip_controls(mut text: &[u8], out: &mut Vec<u8>) {
    while let [byte, rest @ ..] = text {
        text = match (byte, rest) {
            (0xc2, [0x80..=0x9f, rest @ ..]) => rest,
            (0xc2, _) => {
                out.push(*byte);
                rest
            }
            _ if is_suspicious(*byte) => rest,
            _ => {
                out.push(*byte);
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_go_and_everything_else_stays() {
        assert_eq!(sanitized(b"a\x1b[31mb\r\n\tc\0\x7f"), &b"a[31mb\n\tc"[..]);
        assert_eq!(sanitized("x\u{85}y\u{a0}é".as_bytes()), "xy\u{a0}é".as_bytes());
        assert_eq!(sanitized(b"\xff\xc2"), &b"\xff\xc2"[..]);
    }

    #[test]
    fn nickname_rule() {
        assert!(nickname(b"bob").is_some() && nickname(b"A_b-9").is_some());
        for bad in [&b"bo"[..], b"a b c", "héloïse".as_bytes(), b"~bob", b"123456789012345678901"] {
            assert!(nickname(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn channel_names_that_would_confuse_are_refused() {
        assert!(is_channel_name(b"rust") && is_channel_name("größe".as_bytes()));
        for bad in [&b"#rust"[..], b"a b", b"a/b", b"dm_1_2", b"a\x1bb", b"\xff\xfe\xfd"] {
            assert!(!is_channel_name(bad), "{bad:?}");
        }
    }
}
