use serde_json::json;

use super::*;
use crate::{Claim, Config, convert};

fn text(entries: &[(&str, &str)]) -> String {
    let document = |(name, version): &(&str, &str)| match *version {
        "broken" => "a: [\n".to_owned(),
        "refused" => format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name:?}, labels: {{a: on}}}}\n"),
        good => format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name:?}}}\ndata: {{v: {good:?}}}\n"),
    };
    entries.iter().map(document).collect::<Vec<_>>().join("---\n")
}

fn edit(path: &str, entries: &[(&str, &str)]) -> (Arc<str>, Option<FileInput>) {
    (path.into(), Some(convert::read_file(path, &text(entries), &Config::default())))
}

fn gone(path: &str) -> (Arc<str>, Option<FileInput>) {
    (path.into(), None)
}

fn state(ledger: &Ledger) -> Vec<(String, String)> {
    let value = |object: &Object| object.body.part("data")["v"].as_str().unwrap_or("-").to_owned();
    ledger.objects().map(|object| (object.reference.name.to_string(), value(object))).collect()
}

fn pairs(entries: &[(&str, &str)]) -> Vec<(String, String)> {
    entries.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

fn rejections(ledger: &Ledger) -> Vec<(String, usize, bool)> {
    let status = ledger.status(|_| true);
    status.rejections.iter().map(|found| (found.origin.clone(), found.document, found.kept_last_good)).collect()
}

#[test]
fn a_refused_edit_keeps_the_last_good_version_until_fixed() {
    let mut ledger = Ledger::new(Mode::Strict);
    ledger.apply([edit("a", &[("x", "1"), ("y", "1")])]);
    let changes = ledger.apply([edit("a", &[("x", "refused"), ("y", "2")])]);
    assert_eq!(state(&ledger), pairs(&[("x", "1"), ("y", "2")]));
    assert_eq!((changes.added.len(), changes.updated.len(), changes.deleted.len()), (0, 1, 0));
    assert_eq!(rejections(&ledger), [("a".to_owned(), 1, true)]);
    // Still refused in another way: the same version stays.
    ledger.apply([edit("a", &[("y", "2"), ("x", "refused")])]);
    assert_eq!(state(&ledger), pairs(&[("x", "1"), ("y", "2")]));
    ledger.apply([edit("a", &[("x", "3"), ("y", "2")])]);
    assert_eq!(state(&ledger), pairs(&[("x", "3"), ("y", "2")]));
    assert_eq!(rejections(&ledger), []);
    ledger.apply([edit("a", &[("x", "refused")])]);
    let changes = ledger.apply([gone("a")]);
    assert_eq!(state(&ledger), []);
    assert_eq!(changes.deleted.len(), 1);
}

#[test]
fn what_was_never_good_is_left_out_or_taken_by_mode() {
    let edits = || [edit("a", &[("x", "refused"), ("y", "1")])];
    let mut ledger = Ledger::new(Mode::Strict);
    ledger.apply(edits());
    assert_eq!(state(&ledger), pairs(&[("y", "1")]));
    assert_eq!(rejections(&ledger), [("a".to_owned(), 1, false)]);
    let mut ledger = Ledger::new(Mode::Lenient);
    ledger.apply(edits());
    assert_eq!(state(&ledger), pairs(&[("x", "-"), ("y", "1")]));
    assert_eq!(rejections(&ledger), [("a".to_owned(), 1, false)]);
}

#[test]
fn an_unreadable_document_keeps_what_it_may_hold() {
    let mut ledger = Ledger::new(Mode::Strict);
    ledger.apply([edit("a", &[("x", "1"), ("y", "1"), ("z", "1")])]);
    ledger.apply([edit("a", &[("x", "2"), ("y", "broken"), ("z", "2")])]);
    assert_eq!(state(&ledger), pairs(&[("x", "2"), ("y", "1"), ("z", "2")]));
    assert_eq!(rejections(&ledger), [("a".to_owned(), 2, true)]);
    let unreadable = Claim::unreadable("a", crate::Violation::new("", "is not text"));
    ledger.apply([("a".into(), Some(FileInput { claims: vec![unreadable], ..FileInput::default() }))]);
    assert_eq!(state(&ledger), pairs(&[("x", "2"), ("y", "1"), ("z", "2")]));
    ledger.apply([edit("a", &[("x", "2")])]);
    assert_eq!(state(&ledger), pairs(&[("x", "2")]));
}

#[test]
fn the_first_file_by_path_wins_a_conflict() {
    let mut ledger = Ledger::new(Mode::Strict);
    ledger.apply([edit("b", &[("x", "b")])]);
    ledger.apply([edit("a", &[("x", "a")])]);
    assert_eq!(state(&ledger), pairs(&[("x", "a")]));
    let status = ledger.status(|_| true);
    assert_eq!(
        status.rejections[0].to_string(),
        "b (document 1): ConfigMap default/x: the same object stands in a (document 1), which is used"
    );
    ledger.apply([gone("a")]);
    assert_eq!(state(&ledger), pairs(&[("x", "b")]));
    assert_eq!(rejections(&ledger), []);
    ledger.apply([edit("b", &[("x", "1"), ("x", "2")])]);
    assert_eq!(state(&ledger), pairs(&[("x", "1")]));
    assert_eq!(rejections(&ledger), [("b".to_owned(), 2, false)]);
}

#[test]
fn moving_an_object_is_no_change() {
    let mut ledger = Ledger::new(Mode::Strict);
    ledger.apply([edit("b", &[("x", "1")])]);
    assert!(ledger.apply([gone("b"), edit("a", &[("w", "refused"), ("x", "1")])]).is_empty());
    // Moved and spoilt at once.
    let changes = ledger.apply([gone("a"), edit("c", &[("x", "refused")])]);
    assert!(changes.is_empty());
    assert_eq!(state(&ledger), pairs(&[("x", "1")]));
    ledger.apply([edit("c", &[("x", "refused"), ("y", "1")])]);
    assert_eq!(state(&ledger), pairs(&[("x", "1"), ("y", "1")]));
    // Out of a file that cannot be read as a whole, into another one: the readable one decides.
    ledger.apply([edit("c", &[("q", "broken")]), edit("d", &[("x", "2")])]);
    assert_eq!(state(&ledger), pairs(&[("x", "2"), ("y", "1")]));
}

#[test]
fn settings_are_apart_and_keep_their_last_good_version() {
    let config = Config::default();
    let read = |path: &str, text: &str| (Arc::from(path), Some(convert::read_file(path, text, &config)));
    let mut ledger = Ledger::new(Mode::Strict);
    let map =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'a: 1'}\n";
    assert!(ledger.apply([read("map.yaml", map)]).settings);
    assert_eq!(ledger.settings().mesh.as_deref(), Some(&json!({"a": 1})));
    let changes = ledger.apply([read("mesh.yaml", "a: 2\n")]);
    assert!(changes.settings && changes.added.is_empty());
    assert_eq!(ledger.settings().mesh.as_deref(), Some(&json!({"a": 2})));
    assert!(ledger.apply([read("mesh.yaml", "a: [\n")]).is_empty());
    assert_eq!(ledger.settings().mesh.as_deref(), Some(&json!({"a": 2})));
    assert_eq!(ledger.objects().count(), 1);
    let status = ledger.status(|kind| kind != "ConfigMap");
    assert_eq!(status.unread_kinds, [("ConfigMap".to_owned(), 1)].into());
}

mod properties {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const FILES: [&str; 3] = ["a", "b", "c"];
    const NAMES: [&str; 4] = ["w", "x", "y", "z"];
    const VERSIONS: [&str; 5] = ["1", "2", "3", "refused", "broken"];

    type Entries = Vec<(&'static str, &'static str)>;
    type Batch = Vec<(&'static str, Option<Entries>)>;

    fn batches(versions: &'static [&'static str]) -> impl Strategy<Value = Vec<Batch>> {
        let entries = vec((0..NAMES.len(), 0..versions.len()), 0..5)
            .prop_map(move |picks| picks.into_iter().map(|(name, at)| (NAMES[name], versions[at])).collect());
        let edit = (0..FILES.len(), prop::option::weighted(0.8, entries)).prop_map(|(file, to)| (FILES[file], to));
        vec(vec(edit, 1..3), 1..10)
    }

    fn edits(batch: &Batch) -> Vec<(Arc<str>, Option<FileInput>)> {
        batch.iter().map(|(path, to)| to.as_ref().map_or_else(|| gone(path), |entries| edit(path, entries))).collect()
    }

    proptest! {
        /// Changes add up to the state, and the state equals a cold load of the versions that each file stands for.
        #[test]
        fn edits_equal_a_cold_load(sequence in batches(&VERSIONS)) {
            let mut ledger = Ledger::new(Mode::Strict);
            let mut followed: BTreeMap<ObjectRef, Arc<Object>> = BTreeMap::new();
            for batch in &sequence {
                let changes = ledger.apply(edits(batch));
                for object in changes.added {
                    prop_assert!(followed.insert(object.reference.clone(), object).is_none());
                }
                for Updated { old, new } in changes.updated {
                    let before = followed.insert(new.reference.clone(), new);
                    prop_assert_eq!(before.map(|before| before.body.clone()), Some(old.body.clone()));
                }
                for object in changes.deleted {
                    prop_assert!(followed.remove(&object.reference).is_some());
                }
                let body = |object: &Arc<Object>| (object.reference.clone(), object.body.clone());
                let now: Vec<_> = ledger.objects().map(body).collect();
                prop_assert_eq!(&now, &followed.values().map(body).collect::<Vec<_>>());

                let mut cold = Ledger::new(Mode::Strict);
                cold.apply(ledger.files.iter().map(|(path, file)| {
                    let certain = |reference: &ObjectRef| {
                        let elsewhere = ledger.claims(reference);
                        elsewhere.iter().any(|(_, version)| version.document.is_some() && version.object.is_some())
                    };
                    let claims = file.versions.iter().filter_map(|(reference, version)| {
                        if version.document.is_none() && certain(reference) {
                            return None;
                        }
                        let object = version.object.clone()?;
                        Some(Claim { document: 1, reference: Some(reference.clone()), object: Some(object), refusals: vec![] })
                    });
                    (path.clone(), Some(FileInput { claims: claims.collect(), ..FileInput::default() }))
                }));
                prop_assert_eq!(now, cold.objects().map(body).collect::<Vec<_>>());
            }
        }

        /// While nothing is refused, history does not matter, nor how edits are batched.
        #[test]
        fn good_files_have_no_history(sequence in batches(&VERSIONS[..3])) {
            let mut ledger = Ledger::new(Mode::Strict);
            let mut files = BTreeMap::new();
            for batch in &sequence {
                ledger.apply(edits(batch));
                files.extend(batch.iter().cloned());
            }
            let mut cold = Ledger::new(Mode::Strict);
            cold.apply(edits(&files.into_iter().collect()));
            prop_assert_eq!(state(&ledger), state(&cold));
            prop_assert_eq!(ledger.status(|_| true), cold.status(|_| true));
        }

        /// An object in force that some file still names stays in force.
        #[test]
        fn nothing_is_lost_to_a_mistake(sequence in batches(&VERSIONS)) {
            let mut ledger = Ledger::new(Mode::Strict);
            for batch in &sequence {
                let before: Vec<_> = ledger.objects().map(|object| object.reference.clone()).collect();
                ledger.apply(edits(batch));
                for reference in before {
                    let named = ledger.claimants.contains_key(&reference);
                    prop_assert_eq!(named, ledger.get(&reference).is_some());
                }
            }
        }
    }
}
