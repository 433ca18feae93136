//! Conversions that rules call; what Go's library refuses is refused here.

use std::borrow::Cow;

use super::Failure;
use super::eval::Val;

pub(super) fn substring<'a>(text: &str, from: i64, to: Option<i64>) -> Result<Val<'a>, Failure> {
    let length = text.chars().count() as i64;
    let to = to.unwrap_or(length);
    if from < 0 || to > length || from > to {
        return Err(Failure::Value(format!("index out of range: {from}..{to} of {length} characters")));
    }
    let part: String = text.chars().skip(from as usize).take((to - from) as usize).collect();
    Ok(Val::Text(Cow::Owned(part)))
}

pub(super) fn int<'a>(text: &str) -> Result<Val<'a>, Failure> {
    text.parse().map(Val::Int).map_err(|_| Failure::Value(format!("{text:?} is not an integer")))
}

/// Go's `time.ParseDuration`: `1h2m3.5s`.
pub(super) fn duration<'a>(text: &str) -> Result<Val<'a>, Failure> {
    parse_duration(text).map(Val::Duration).ok_or_else(|| Failure::Value(format!("{text:?} is not a duration")))
}

fn parse_duration(text: &str) -> Option<i128> {
    let (sign, mut rest) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 24 {
            return None;
        }
        let (unit, tail) = UNITS.iter().find_map(|(name, nanos)| Some((*nanos, tail.strip_prefix(name)?)))?;
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total += whole * unit;
        if !fraction.is_empty() {
            total += fraction.parse::<i128>().ok()? * unit / 10i128.checked_pow(fraction.len() as u32)?;
        }
        rest = tail;
    }
    // Go keeps durations in 64 bits.
    (total <= i128::from(i64::MAX)).then_some(sign * total)
}

/// Longer names first where one starts another.
const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// The scheme of a URL, in lower case and empty for a path; refuses what Go's `url.ParseRequestURI` refuses.
pub(super) fn scheme(text: &str) -> Result<String, &'static str> {
    if text.is_empty() {
        return Err("empty URL");
    }
    if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return Err("invalid control character in URL");
    }
    let (scheme, rest) = split_scheme(text)?;
    let (rest, _query) = rest.split_once('?').unwrap_or((rest, ""));
    if !rest.starts_with('/') {
        return if scheme.is_empty() { Err("invalid URI for request") } else { Ok(scheme) };
    }
    let mut path = rest;
    if !scheme.is_empty()
        && let Some(rest) = rest.strip_prefix("//")
    {
        let end = rest.find('/').unwrap_or(rest.len());
        check_authority(&rest[..end])?;
        path = &rest[end..];
    }
    check_escapes(path)?;
    Ok(scheme)
}

fn split_scheme(text: &str) -> Result<(String, &str), &'static str> {
    for (at, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' if at == 0 => return Err("missing protocol scheme"),
            ':' => return Ok((text[..at].to_ascii_lowercase(), &text[at + 1..])),
            _ => break,
        }
    }
    Ok((String::new(), text))
}

fn check_authority(authority: &str) -> Result<(), &'static str> {
    let host = match authority.rsplit_once('@') {
        Some((user, host)) => {
            let valid = |c: char| c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c);
            if !user.chars().all(valid) {
                return Err("invalid userinfo");
            }
            check_escapes(user)?;
            host
        }
        None => authority,
    };
    let port = if host.starts_with('[') {
        let end = host.rfind(']').ok_or("missing ']' in host")?;
        &host[end + 1..]
    } else {
        host.find(':').map_or("", |at| &host[at..])
    };
    let valid_port = port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()));
    if !valid_port {
        return Err("invalid port after host");
    }
    let valid = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]<>\"%".contains(c);
    if !host.chars().all(valid) {
        return Err("invalid character in host name");
    }
    check_escapes(host)
}

fn check_escapes(text: &str) -> Result<(), &'static str> {
    let bytes = text.as_bytes();
    let broken = (0..bytes.len())
        .filter(|at| bytes[*at] == b'%')
        .any(|at| !bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)));
    if broken { Err("invalid URL escape") } else { Ok(()) }
}
