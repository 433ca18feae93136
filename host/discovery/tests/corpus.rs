//! Verdicts of a real API server, from the conformance corpus, when it is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use trysail_discovery::{Config, FileInput, Mode, convert, load_folder, parse, schema};

/// The corpus, by `TRYSAIL_CORPUS` or beside the workspace.
fn corpus(set: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus");
    let dir = std::env::var_os("TRYSAIL_CORPUS").map_or_else(beside, PathBuf::from).join(set);
    if dir.is_dir() {
        return Some(dir);
    }
    println!("skipped: there is no corpus at {}", dir.display());
    None
}

fn documents(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("reads");
    parse::parse_documents(&text).into_iter().map(|document| document.expect("reads").value).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("lists").path()).collect();
    files.sort();
    files
}

fn read(text: &str) -> FileInput {
    convert::read_file("input.yaml", text, &Config::default())
}

fn reasons(input: &FileInput) -> Vec<String> {
    input.claims.iter().flat_map(|claim| &claim.refusals).map(ToString::to_string).collect()
}

#[test]
fn crd_verdicts_agree() {
    let Some(dir) = corpus("crd-validation") else {
        return;
    };
    let (mut n_cases, mut wrong) = (0, Vec::new());
    for file in files(&dir) {
        for case in documents(&file) {
            n_cases += 1;
            let accept = case["crd"]["accept"].as_bool().expect("a verdict");
            let input = read(&case["resource"].to_string());
            let found = reasons(&input);
            if accept != found.is_empty() {
                wrong.push(format!("{}: accept should be {accept}: {found:?}; {}", case["name"], case["crd"]["error"]));
            }
        }
    }
    println!("{} of {n_cases} verdicts agree; {} rules asked", n_cases - wrong.len(), schema::evaluated_rules());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(schema::unevaluated_rules(), BTreeMap::new());
}

#[test]
fn samples_load() {
    let Some(dir) = corpus("config-samples") else {
        return;
    };
    let mut verdicts: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    for verdict in documents(&dir.join("verdicts.yaml")) {
        let file = verdict["file"].as_str().expect("a file").to_owned();
        verdicts.entry(file).or_default().push(verdict["crd"]["accept"].as_bool().expect("a verdict"));
    }
    for (file, want) in verdicts {
        let input = read(&std::fs::read_to_string(dir.join(&file)).expect("reads"));
        let istio = input
            .claims
            .iter()
            .filter(|claim| claim.object.as_ref().is_none_or(|object| object.api_version.contains(".istio.io/")));
        // The verdicts are those of strict field validation; here an unknown field only warns.
        let odd = |document: usize| input.warnings.iter().any(|warning| warning.document == document);
        let found: Vec<_> = istio.map(|claim| claim.refusals.is_empty() && !odd(claim.document)).collect();
        assert_eq!(found, want, "{file}: {:?}", reasons(&input));
    }
}

#[test]
fn webhook_cases_are_taken_by_the_schema_or_refused() {
    let Some(dir) = corpus("validation") else {
        return;
    };
    let (mut n_good, mut wrong) = (0, Vec::new());
    for file in files(&dir) {
        for case in documents(&file) {
            // What the webhook takes may still break the schema; it is worth a look how often.
            if case["accept"] == Value::Bool(true) {
                n_good += 1;
                let found = reasons(&read(&case["resource"].to_string()));
                if !found.is_empty() {
                    wrong.push(format!("{}: {found:?}", case["name"]));
                }
            }
        }
    }
    println!("{} of {n_good} that the webhook takes break the schema:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn scenarios_load_with_the_same_refusals() {
    let Some(dir) = corpus("xds") else { return };
    let mut folders = vec![dir];
    let (mut n_scenarios, mut n_objects, mut wrong) = (0, 0, Vec::new());
    let started = std::time::Instant::now();
    let mut loading = std::time::Duration::ZERO;
    while let Some(folder) = folders.pop() {
        if !folder.join("input.yaml").is_file() {
            folders.extend(files(&folder).into_iter().filter(|path| path.is_dir()));
            continue;
        }
        n_scenarios += 1;
        let before = std::time::Instant::now();
        let loaded = load_folder(&folder, &Config::scenario()).expect("loads");
        loading += before.elapsed();
        assert_eq!(Config::scenario().mode, Mode::Lenient);
        n_objects += loaded.objects.len();
        let expected = std::fs::read_to_string(folder.join("expected/validation.txt")).unwrap_or_default();
        let want: Vec<_> = expected.lines().filter_map(|line| Some(line.split_once(": crd: ")?.0.to_owned())).collect();
        let named = |line: &str| {
            let mut parts = line.rsplit('/');
            let (name, namespace, kind) = (parts.next()?, parts.next()?, parts.next()?);
            Some(format!("{kind} {namespace}/{name}"))
        };
        let mut want: Vec<_> = want.iter().filter_map(|line| named(line)).collect();
        // The verdicts are those of CRDs; what is said of the Kubernetes kinds is not in the corpus.
        let kubernetes = ["Service", "EndpointSlice", "Pod"];
        let judged = loaded.status.rejections.iter().filter(|refusal| {
            // Two documents without a separator between them: the corpus goes on with the last one.
            let of_kubernetes = refusal.object.as_ref().is_some_and(|object| kubernetes.contains(&&*object.kind));
            !of_kubernetes && !refusal.reason.contains("duplicate key")
        });
        let mut found: Vec<_> =
            judged.map(|refusal| refusal.object.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string)).collect();
        want.sort();
        want.dedup();
        found.sort();
        found.dedup();
        if want != found || !loaded.status.unknown_kinds.is_empty() {
            let details: Vec<_> = loaded.status.rejections.iter().map(ToString::to_string).collect();
            let unknown = &loaded.status.unknown_kinds;
            wrong.push(format!("{}: want {want:?}, found {details:?}, unknown {unknown:?}", folder.display()));
        }
        for warning in &loaded.status.warnings {
            println!("{}: {warning}", folder.display());
        }
        assert!(loaded.settings.proxies.is_some(), "{}", folder.display());
    }
    println!("{n_scenarios} scenarios, {n_objects} objects, loaded in {loading:?} of {:?}", started.elapsed());
    assert!(wrong.is_empty(), "{} of {n_scenarios}:\n{}", wrong.len(), wrong.join("\n"));
}
