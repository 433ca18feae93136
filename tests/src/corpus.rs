//! Comparison of rendered resources with what istiod made of the same scenarios: the rules of the corpus and of its
//! `xdscompare.py`, so that both count alike.
//!
//! A scenario is a folder with `expected/<proxy>/<type>.json`; what was rendered stands in `<proxy>/<type>.json` elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value};

use crate::workspace;

/// The recorded scenarios: those that `TRYSAIL_CORPUS` names, else those beside the workspace. None where there are none.
pub fn folder() -> Option<PathBuf> {
    let folder = env::var_os("TRYSAIL_CORPUS").map_or_else(|| workspace().join("../shared/corpus"), PathBuf::from);
    folder.join("xds").is_dir().then(|| folder.join("xds"))
}

/// Areas of the translation that each scenario needs, by its path.
///
/// # Errors
/// When the list cannot be read.
pub fn areas(root: &Path) -> Result<BTreeMap<PathBuf, BTreeSet<String>>> {
    let file = root.join("areas.json");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is broken", file.display()))
}

/// How resources of one kind compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Equal resources.
    pub equal: usize,
    /// Resources that both sides have, with other content.
    pub different: usize,
    /// Resources that were expected and are not there.
    pub missing: usize,
    /// Resources that were not expected.
    pub extra: usize,
}

impl Count {
    /// All resources of either side.
    pub fn all(&self) -> usize {
        let Count { equal, different, missing, extra } = self;
        equal + different + missing + extra
    }

    /// Adds another count.
    pub fn add(&mut self, other: &Count) {
        self.equal += other.equal;
        self.different += other.different;
        self.missing += other.missing;
        self.extra += other.extra;
    }

    /// Equal ones among all, in percent.
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    pub fn share(&self) -> f64 {
        if self.all() == 0 { 100.0 } else { 100.0 * self.equal as f64 / self.all() as f64 }
    }
}

/// What became of one scenario.
#[derive(Debug, Default)]
pub struct Compared {
    /// By type (`cds`).
    pub counts: BTreeMap<String, Count>,
    /// Readable differences, each with the file and resource it is in.
    pub differences: Vec<Difference>,
}

/// A resource that is not as expected.
#[derive(Debug)]
pub struct Difference {
    /// `proxy/type.json`.
    pub file: String,
    /// Name of the resource.
    pub resource: String,
    /// What is wrong with it: a line for each field, or one word.
    pub lines: Vec<String>,
}

/// Lines that are shown of one resource.
const MAX_LINES: usize = 6;

/// Compares the files of a scenario.
///
/// # Errors
/// When a folder cannot be read.
pub fn compare(expected: &Path, actual: &Path) -> Result<Compared> {
    let unstable = unstable_paths(expected)?;
    let mut files = BTreeSet::new();
    files_below(expected, &mut files)?;
    files_below(actual, &mut files)?;
    let mut compared = Compared::default();
    for file in files {
        let short = file.rsplit('/').next().unwrap_or_default().trim_end_matches(".json").to_owned();
        let paths = unstable.get(&file).map(Vec::as_slice).unwrap_or_default();
        let (mut want, mut got) = (load(&expected.join(&file), paths), load(&actual.join(&file), paths));
        let names: BTreeSet<String> = want.keys().chain(got.keys()).cloned().collect();
        let count = compared.counts.entry(short).or_default();
        for name in names {
            let (want, got) = (want.remove(&name).unwrap_or_default(), got.remove(&name).unwrap_or_default());
            for i in 0..want.len().max(got.len()) {
                let lines = match (want.get(i), got.get(i)) {
                    (Some(want), Some(got)) if want == got => {
                        count.equal += 1;
                        continue;
                    }
                    (Some(want), Some(got)) => {
                        count.different += 1;
                        let mut lines = Vec::new();
                        differences(want, got, String::new(), &mut lines);
                        lines
                    }
                    (Some(_), None) => {
                        count.missing += 1;
                        vec!["missing".into()]
                    }
                    _ => {
                        count.extra += 1;
                        vec!["extra".into()]
                    }
                };
                compared.differences.push(Difference { file: file.clone(), resource: name.clone(), lines });
            }
        }
    }
    Ok(compared)
}

/// `proxy/type.json` of a folder; lists of names are no resources.
fn files_below(root: &Path, files: &mut BTreeSet<String>) -> Result<()> {
    if !root.is_dir() {
        return Ok(());
    }
    for proxy in fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))? {
        let proxy = proxy.context("cannot read a folder")?;
        if !proxy.path().is_dir() {
            continue;
        }
        for file in fs::read_dir(proxy.path()).with_context(|| format!("cannot read {}", proxy.path().display()))? {
            let file = file.context("cannot read a folder")?.file_name().to_string_lossy().into_owned();
            if file.ends_with(".json") && !file.ends_with("_names.json") {
                files.insert(format!("{}/{file}", proxy.file_name().to_string_lossy()));
            }
        }
    }
    Ok(())
}

/// Paths named in `nondeterministic.txt`, by file.
fn unstable_paths(expected: &Path) -> Result<BTreeMap<String, Vec<Vec<String>>>> {
    let mut paths: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    let file = expected.join("nondeterministic.txt");
    if file.is_file() {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        for (file, path) in text.lines().filter_map(|line| line.split_once(' ')) {
            let path = path.trim().split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
            paths.entry(file.to_owned()).or_default().push(path);
        }
    }
    Ok(paths)
}

/// The resources of a file by name. A file that is absent, or no list, has none.
fn load(file: &Path, unstable: &[Vec<String>]) -> BTreeMap<String, Vec<Value>> {
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let rows = fs::read_to_string(file).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let Some(mut rows @ Value::Array(_)) = rows else { return found };
    for path in unstable {
        if let Some(at) = rows.pointer_mut(&format!("/{}", path.join("/"))) {
            *at = "*".into();
        }
    }
    for row in rows.as_array().into_iter().flatten() {
        found.entry(name_of(row)).or_default().push(normal(row));
    }
    found
}

fn name_of(resource: &Value) -> String {
    let text = |path: &str| resource.pointer(path).and_then(Value::as_str);
    if let Some(uid) = text("/workload/uid") {
        return format!("workload {uid}");
    }
    if resource.get("service").is_some_and(Value::is_object) {
        return format!(
            "service {}/{}",
            text("/service/namespace").unwrap_or_default(),
            text("/service/hostname").unwrap_or_default()
        );
    }
    if let (Some(name), Some(namespace)) = (text("/name"), text("/namespace")) {
        return format!("{namespace}/{name}");
    }
    let named = ["/name", "/cluster_name", "/uid", "/hostname", "/@type"].into_iter().find_map(text);
    named.map_or_else(|| resource.to_string().chars().take(120).collect(), str::to_owned)
}

/// Spellings of the same JSON value become one. Lists keep their order, but for the endpoints of a locality.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            // Sorted, because endpoints are sorted by their text below.
            let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
            let mut normalized = Map::new();
            for (name, value) in sorted {
                let mut value = normal(value);
                if name == "lb_endpoints"
                    && let Value::Array(items) = &mut value
                {
                    items.sort_by_cached_key(Value::to_string);
                }
                normalized.insert(name.clone(), value);
            }
            normalized.into()
        }
        Value::Array(items) => items.iter().map(normal).collect(),
        // Numbers and strings of the same number are equal, as are 1 and 1.0, 10s and 10.0s.
        Value::Number(number) => number.as_f64().map_or_else(|| value.clone(), |number| format!("{number}").into()),
        Value::String(text) => normal_text(text).map_or_else(|| value.clone(), Value::String),
        other => other.clone(),
    }
}

fn normal_text(text: &str) -> Option<String> {
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_digits(text.strip_prefix('-').unwrap_or(text)) {
        return Some(format!("{}", text.parse::<f64>().ok()?));
    }
    let seconds = text.strip_suffix('s')?;
    let unsigned = seconds.strip_prefix('-').unwrap_or(seconds);
    let (whole, part) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    (is_digits(whole) && is_digits(part)).then_some(())?;
    Some(format!("{}s", seconds.parse::<f64>().ok()?))
}

fn differences(want: &Value, got: &Value, path: String, lines: &mut Vec<String>) {
    if lines.len() >= MAX_LINES || want == got {
        return;
    }
    match (want, got) {
        (Value::Object(a), Value::Object(b)) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                match (a.get(name), b.get(name)) {
                    (Some(want), Some(got)) => differences(want, got, format!("{path}.{name}"), lines),
                    (want, got) => lines.push(line(&format!("{path}.{name}"), want, got)),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            if a.len() != b.len() {
                lines.push(format!("{path}: want {} items, got {}", a.len(), b.len()));
            }
            for (i, (want, got)) in a.iter().zip(b).enumerate() {
                differences(want, got, format!("{path}[{i}]"), lines);
            }
        }
        _ => lines.push(line(&path, Some(want), Some(got))),
    }
    lines.truncate(MAX_LINES);
}

fn line(path: &str, want: Option<&Value>, got: Option<&Value>) -> String {
    let show = |value: Option<&Value>| {
        value.map_or("nothing".into(), |value| value.to_string().chars().take(160).collect::<String>())
    };
    format!("{path}: want {} got {}", show(want), show(got))
}

/// All scenarios below a folder that have expected results, by their path from there.
///
/// # Errors
/// When a folder cannot be read.
pub fn scenarios(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(folder) = todo.pop() {
        if folder.join("input.yaml").is_file() && folder.join("proxies.yaml").is_file() {
            found.push(folder.strip_prefix(root).unwrap_or(&folder).to_owned());
            continue;
        }
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry.context("cannot read a folder")?.path();
            if path.is_dir() {
                todo.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The group that a scenario counts for: its first two folders.
pub fn group(scenario: &Path) -> String {
    let parts: Vec<_> = scenario.iter().take(2).map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn spellings_are_one() {
        for (a, b) in [
            (json!(100), json!(100.0)),
            (json!("100"), json!(100)),
            (json!("10s"), json!("10.000s")),
            (json!({"lb_endpoints": [1, 2]}), json!({"lb_endpoints": [2, 1]})),
        ] {
            assert_eq!(normal(&a), normal(&b));
        }
        for (a, b) in [
            (json!("10s"), json!("10")),
            (json!([1, 2]), json!([2, 1])),
            (json!({}), json!({"a": {}})),
            (json!(true), json!(1)),
        ] {
            assert_ne!(normal(&a), normal(&b));
        }
    }

    #[test]
    fn counts_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let (want, got) = (folder.path().join("expected"), folder.path().join("actual"));
        for (root, text) in [
            (&want, json!([{"name": "a", "x": 1}, {"name": "b"}, {"name": "c"}])),
            (&got, json!([{"name": "a", "x": 2}, {"name": "b"}, {"name": "d"}])),
        ] {
            fs::create_dir_all(root.join("proxy")).unwrap();
            fs::write(root.join("proxy/cds.json"), text.to_string()).unwrap();
        }
        let compared = compare(&want, &got).unwrap();
        assert_eq!(compared.counts["cds"], Count { equal: 1, different: 1, missing: 1, extra: 1 });
        assert_eq!(compared.differences[0].lines, [".x: want \"1\" got \"2\""]);
    }
}
