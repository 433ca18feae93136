//! The environment and durations as istiod writes them.

use std::collections::BTreeMap;
use std::time::Duration;

/// Where variables are read from: the process, or a test's table.
pub trait Environment {
    /// A variable, when it is set and not empty.
    fn get(&self, name: &str) -> Option<String>;

    /// All of them.
    fn all(&self) -> BTreeMap<String, String>;
}

/// The process's environment.
pub struct Process;

impl Environment for Process {
    fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }

    fn all(&self) -> BTreeMap<String, String> {
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
    }
}

impl Environment for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        BTreeMap::get(self, name).cloned().filter(|value| !value.is_empty())
    }

    fn all(&self) -> BTreeMap<String, String> {
        self.clone()
    }
}

/// Reads a duration as Go writes it: `1m30s`, `100ms`, `1.5h`, `0`.
pub fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, seconds) =
            [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)]
                .into_iter()
                .find(|(unit, _)| rest.starts_with(unit))?;
        // `m` is also the beginning of `ms`, which stands before it.
        total += number * seconds;
        rest = &rest[unit.len()..];
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(total).ok() }
}

/// A variable that is a duration; a malformed one is reported and the default used, as istiod does.
pub fn duration_of(environment: &dyn Environment, name: &str, default: Duration) -> Duration {
    let Some(text) = environment.get(name) else { return default };
    duration(&text).unwrap_or_else(|| {
        tracing::warn!(variable = name, value = text, ?default, "not a duration; using the default");
        default
    })
}

/// A variable that is a truth value as Go writes it; a malformed one is reported and the default used.
pub fn flag_of(environment: &dyn Environment, name: &str, default: bool) -> bool {
    let Some(text) = environment.get(name) else { return default };
    match &*text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => {
            tracing::warn!(variable = name, value = text, default, "not true or false; using the default");
            default
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(duration("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        assert_eq!(duration("0s"), Some(Duration::ZERO));
        assert_eq!(duration("1.5h"), Some(Duration::from_secs(5400)));
        for bad in ["", "5", "ms", "-1s", "1 s", "1y"] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_malformed_variable_falls_back() {
        let environment = BTreeMap::from([("A".to_owned(), "soon".to_owned()), ("B".to_owned(), "5ms".to_owned())]);
        let default = Duration::from_secs(1);
        assert_eq!(duration_of(&environment, "A", default), default);
        assert_eq!(duration_of(&environment, "B", default), Duration::from_millis(5));
        assert_eq!(duration_of(&environment, "C", default), default);
    }
}
