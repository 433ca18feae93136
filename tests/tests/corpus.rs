//! The conformance corpus: how much of what istiod 1.31 sends we send too, resource by resource.
//!
//! `floors.json` holds for each group and type how many of how many resources were equal; the share may only rise.
//! `UPDATE_FLOORS=1` raises it. `CORPUS_DIFF=TEXT` prints what differs in scenarios whose path contains the text (empty: in
//! all); `TRYSAIL_CORPUS=DIR` names the corpus, which is else looked for beside the workspace.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

use serde_json::json;
use trysail_tests::corpus::{self, Count};

#[path = "support/render.rs"]
mod render;

/// Differences that are printed of a group that fell.
const MAX_SHOWN: usize = 20;

/// Group and type.
type Key = (String, String);

fn floors_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("floors.json")
}

/// `{group: {type: [equal, of]}}`
fn read_floors() -> BTreeMap<Key, (usize, usize)> {
    let text = fs::read_to_string(floors_file()).unwrap_or_else(|_| "{}".into());
    let groups: BTreeMap<String, BTreeMap<String, (usize, usize)>> =
        serde_json::from_str(&text).expect("floors.json is broken");
    let entries = groups.into_iter();
    entries
        .flat_map(|(group, types)| types.into_iter().map(move |(short, floor)| ((group.clone(), short), floor)))
        .collect()
}

fn write_floors(floors: &BTreeMap<Key, (usize, usize)>) {
    let mut groups: BTreeMap<&str, BTreeMap<&str, (usize, usize)>> = BTreeMap::new();
    for ((group, short), floor) in floors {
        groups.entry(group).or_default().insert(short, *floor);
    }
    // A line for each group: diffs of this file are read.
    let lines: Vec<String> =
        groups.iter().map(|(group, types)| format!("  {}: {}", json!(group), json!(types))).collect();
    fs::write(floors_file(), format!("{{\n{}\n}}\n", lines.join(",\n"))).expect("floors.json is writable");
}

/// Whether a share is lower than its floor. Products, as shares are compared exactly.
fn fell(count: &Count, (equal, of): (usize, usize)) -> bool {
    count.equal * of < equal * count.all()
}

/// Scenarios that need nothing but the core areas.
fn core_only(root: &Path) -> BTreeSet<String> {
    let areas = corpus::areas(root).unwrap().into_iter();
    areas.filter(|(_, areas)| areas.iter().eq(["core"])).map(|(scenario, _)| scenario.display().to_string()).collect()
}

#[test]
fn conformance() {
    let Some(root) = corpus::folder() else {
        eprintln!("conformance: skipped: no corpus beside the workspace, and TRYSAIL_CORPUS names none");
        return;
    };
    let scenarios = corpus::scenarios(&root).unwrap();
    let out = tempfile::tempdir().unwrap();
    let failed = render::render_all(&render::as_istiod(), &root, &scenarios, out.path());

    let core = core_only(&root);
    let shown = env::var("CORPUS_DIFF").ok();
    let mut counts: BTreeMap<Key, Count> = BTreeMap::new();
    let mut differing: BTreeMap<Key, Vec<String>> = BTreeMap::new();
    let (mut total, mut total_core) = (Count::default(), Count::default());
    let (mut n_complete, mut n_complete_core) = (0, 0);
    for scenario in &scenarios {
        let compared = corpus::compare(&root.join(scenario).join("expected"), &out.path().join(scenario)).unwrap();
        let (path, group) = (scenario.display().to_string(), corpus::group(scenario));
        let is_core = core.contains(&path);
        for (short, count) in &compared.counts {
            total.add(count);
            if is_core {
                total_core.add(count);
            }
            counts.entry((group.clone(), short.clone())).or_default().add(count);
        }
        if compared.differences.is_empty() {
            n_complete += 1;
            n_complete_core += usize::from(is_core);
        }
        for difference in &compared.differences {
            let text =
                format!("{path} {} {}\n    {}", difference.file, difference.resource, difference.lines.join("\n    "));
            if shown.as_ref().is_some_and(|part| path.contains(part.as_str())) {
                println!("{text}");
            }
            let short = difference.file.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
            differing.entry((group.clone(), short.to_owned())).or_default().push(text);
        }
    }

    // Both sides may have a file without anything in it.
    counts.retain(|_, count| count.all() > 0);
    for ((group, short), count) in &counts {
        let Count { equal, different, missing, extra } = count;
        println!(
            "{:6.1}%  {equal:5}/{:<5} {group} {short} different={different} missing={missing} extra={extra}",
            count.share(),
            count.all()
        );
    }
    let line = |what: &str, total: &Count, n_complete: usize, n: usize| {
        println!(
            "{what}: {:.2}% of {} resources equal; {n_complete}/{n} scenarios complete",
            total.share(),
            total.all()
        );
    };
    line("core only", &total_core, n_complete_core, core.len());
    line("all", &total, n_complete, scenarios.len());

    let mut floors = read_floors();
    let mut lost = Vec::new();
    for (key, floor) in &floors {
        let Some(count) = counts.get(key).filter(|count| fell(count, *floor)) else { continue };
        lost.push(format!(
            "{} {}: {} of {} equal, the floor is {} of {}",
            key.0,
            key.1,
            count.equal,
            count.all(),
            floor.0,
            floor.1
        ));
        for text in differing.get(key).into_iter().flatten().take(MAX_SHOWN) {
            println!("{text}");
        }
    }
    if env::var_os("UPDATE_FLOORS").is_some() {
        for (key, count) in &counts {
            let floor = (count.equal, count.all());
            // Where nothing is equal there is nothing to guard.
            if count.equal > 0 && !floors.get(key).is_some_and(|old| fell(count, *old)) {
                floors.insert(key.clone(), floor);
            }
        }
        write_floors(&floors);
    }
    assert!(failed.is_empty(), "scenarios that could not be rendered:\n{}", failed.join("\n"));
    assert!(lost.is_empty(), "conformance fell:\n{}", lost.join("\n"));
}
