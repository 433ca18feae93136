//! A plugin's cases: a folder each, with a mesh in YAML, the plugin's spec, and what must change.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::rehearsal::{Rehearsal, Rehearsed};
use super::{On, build, document};

/// The file with the plugin's spec.
const SPEC: &str = "plugin.yaml";
/// The file with what must change.
const EXPECTED: &str = "expected.yaml";

/// Runs the cases of a crate; true when all are as expected.
pub(super) fn test(folder: &Path, component: Option<&Path>, bless: bool, envoy: Option<&Path>) -> Result<bool> {
    let component = match component {
        Some(file) => file.to_owned(),
        None => build::build(folder, None)?,
    };
    let cases = cases(&folder.join("cases"))?;
    let mut n_failed = 0;
    for case in &cases {
        let name = case.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let outcome = one(case, &component, bless, envoy).with_context(|| format!("case {name}"))?;
        match outcome {
            Outcome::AsExpected if envoy.is_some() => println!("{name}: ok, and Envoy takes it"),
            Outcome::AsExpected => println!("{name}: ok"),
            Outcome::Written(notes) => {
                println!("{name}: written to {}", case.join(EXPECTED).display());
                notes.iter().for_each(|note| println!("  {note}"));
            }
            Outcome::Otherwise(why) => {
                n_failed += 1;
                println!("{name}: FAILED\n{why}");
            }
        }
    }
    let n_cases = if cases.len() == 1 { "1 case".to_owned() } else { format!("{} cases", cases.len()) };
    println!("{n_cases}, {n_failed} failed");
    Ok(n_failed == 0)
}

fn cases(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("there are no cases: cannot read {}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    if found.is_empty() {
        bail!("there are no cases in {}", folder.display());
    }
    Ok(found)
}

enum Outcome {
    AsExpected,
    /// With what should be known of it.
    Written(Vec<String>),
    Otherwise(String),
}

fn one(case: &Path, component: &Path, bless: bool, envoy: Option<&Path>) -> Result<Outcome> {
    let file = case.join(SPEC);
    let spec = if file.is_file() { document(&file)? } else { json!({}) };
    // The spec and what is expected are no objects of the mesh.
    let mesh = mesh(case)?;
    let rehearsal = Rehearsal::with_spec(component, mesh.path(), &On::default(), spec)?;
    let found = rehearsal.run()?;
    let now = changes(&found);
    if let Some(error) = found.errors.first() {
        let expects_it = std::fs::read_to_string(case.join(EXPECTED)).is_ok_and(|text| text.contains("errors:"));
        if !bless && !expects_it {
            return Ok(Outcome::Otherwise(format!("  {error}")));
        }
    }
    if let Some(envoy) = envoy
        && let Some((proxy, words)) = rehearsal.validate(envoy)?.into_iter().next()
    {
        return Ok(Outcome::Otherwise(format!("  {proxy}: Envoy refuses it: {words}")));
    }
    let file = case.join(EXPECTED);
    if bless {
        let text = format!(
            "# What the plugin changes here. Written by `trysail plugin test --bless`; look at it before you keep it.\n{}",
            serde_yaml_ng::to_string(&now)?
        );
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        let notes = found.errors.iter().map(|error| format!("it has an error: {error}")).chain(found.notes);
        return Ok(Outcome::Written(notes.collect()));
    }
    if !file.is_file() {
        bail!("it has no {EXPECTED}; --bless writes one");
    }
    let expected = document(&file)?;
    if expected == now {
        return Ok(Outcome::AsExpected);
    }
    Ok(Outcome::Otherwise(differences(&expected, &now)))
}

/// What was expected and is not there, and the other way round: a line each, that says which resource it is about.
fn differences(expected: &Value, now: &Value) -> String {
    let (wanted, got) = (lines(expected), lines(now));
    let missing = wanted.iter().filter(|line| !got.contains(line)).map(|line| format!("  - {line}\n"));
    let extra = got.iter().filter(|line| !wanted.contains(line)).map(|line| format!("  + {line}\n"));
    let text: String = missing.chain(extra).collect();
    if text.is_empty() { "  the same changes, in another order or form\n".to_owned() } else { text }
}

/// What a file of expected changes says, a line for each.
fn lines(document: &Value) -> Vec<String> {
    let list = |value: &Value, field: &str| value[field].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut lines = Vec::new();
    for proxy in list(document, "proxies") {
        let of = text(&proxy["proxy"]);
        for change in list(&proxy, "changes") {
            let [kind, resource, path, before, after] =
                ["type", "resource", "path", "before", "after"].map(|field| text(&change[field]));
            lines.push(format!("{of}: {kind} {resource}: {path}: from {before} to {after}"));
        }
        lines.extend(list(&proxy, "said").iter().map(|said| format!("{of}: says {}", text(said))));
        if list(&proxy, "changes").is_empty() {
            lines.push(format!("{of}: nothing changes"));
        }
    }
    lines.extend(list(document, "errors").iter().map(|error| format!("error: {}", text(error))));
    lines
}

/// A folder with the YAML of a case, without what is about the test.
fn mesh(case: &Path) -> Result<TempDir> {
    let folder = tempfile::tempdir().context("cannot make a folder for the mesh")?;
    for entry in std::fs::read_dir(case).with_context(|| format!("cannot read {}", case.display()))?.flatten() {
        let file = entry.path();
        if file.is_file() && !file.ends_with(SPEC) && !file.ends_with(EXPECTED) {
            let copy = folder.path().join(entry.file_name());
            std::fs::copy(&file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
        }
    }
    Ok(folder)
}

/// What changes, in the form of the file: values as JSON, by proxy, type, resource and path.
fn changes(found: &Rehearsed) -> Value {
    let mut document = found.json();
    if let Some(fields) = document.as_object_mut() {
        fields.shift_remove("notes");
        if found.errors.is_empty() {
            fields.shift_remove("errors");
        }
    }
    document
}
