//! Recordings: a call that went wrong in production runs again on a desk, with the answers it had.
#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use trysail::explain::proxy_of;
use trysail::pipeline::{self, Mode, Options};
use trysail::render;
use trysail_facts::FactsSnapshot;
use trysail_stages::guest::Guest;
use trysail_stages::replay::{Recording, RecordingError, Replayed};
use trysail_stages::{FaultKind, Limits};

const BACKEND: &str = "default/backend.default.svc.cluster.local";

fn options(mode: Mode) -> Options {
    Options { mode, audit_share: 0.0, ..Options::default() }
}

/// The example mesh's clusters of `backend`, recorded natively.
fn recording() -> Recording {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/frontend-backend");
    let folder = trysail_discovery::load_folder(&example, &trysail_discovery::Config::scenario()).unwrap();
    let pod =
        folder.objects.iter().find(|o| &*o.reference.kind == "Pod" && &*o.reference.name == "frontend-v1").unwrap();
    let proxy = proxy_of(pod).unwrap();
    let options = options(Mode::Native);
    let snapshot = Arc::new(FactsSnapshot::new(render::inputs(&folder)));
    let engine = pipeline::engine(&options, pipeline::stages(&options).unwrap(), snapshot);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(trysail_stages::STACK);
        let record = || engine.record(&proxy, "clusters", "service", &[BACKEND]).unwrap();
        thread.spawn_scoped(scope, record).unwrap().join().unwrap()
    })
}

fn stage(mode: Mode, name: &str) -> Arc<dyn Guest> {
    let stages = pipeline::stages(&options(mode)).unwrap();
    stages.into_iter().find(|stage| stage.name() == name).unwrap()
}

/// The same recording with one answer tampered with.
fn tampered(kind: &str, answer: Option<&'static [u8]>) -> Recording {
    let mut recording = recording();
    let asked = recording.asked.iter_mut().find(|asked| asked.kind == kind).unwrap();
    assert!(asked.answer.is_some(), "there is an answer to tamper with");
    asked.answer = answer.map(Bytes::from_static);
    recording
}

fn check(mode: Mode) {
    let clusters = stage(mode, "clusters");
    let limits = Limits::default().longer();
    let read = Recording::from_json(&recording().to_json()).unwrap();
    assert_eq!(read.replay(&*clusters, &limits), Replayed::Same);

    // Without the service there are no clusters, or it asks what it did not ask then.
    match tampered("service", None).replay(&*clusters, &limits) {
        Replayed::Different(then, now) => assert_ne!(then, now),
        Replayed::Fault(FaultKind::Impure(_)) => {}
        other => panic!("{other:?}"),
    }
    // No message of any type.
    match tampered("service", Some(b"\xff\xff\xff")).replay(&*clusters, &limits) {
        Replayed::Fault(FaultKind::Failed(_) | FaultKind::Trap(_)) => {}
        other => panic!("{other:?}"),
    }
    // A question less than was asked.
    let mut short = recording();
    short.asked.pop();
    assert!(matches!(short.replay(&*clusters, &limits), Replayed::Fault(FaultKind::Impure(_))));
    // Another function than the one recorded.
    assert!(matches!(recording().replay(&*stage(mode, "routes"), &limits), Replayed::Fault(_)));
}

#[test]
fn a_recorded_call_runs_again_natively() {
    check(Mode::Native);
}

#[cfg(feature = "components")]
#[test]
fn a_recorded_call_runs_again_in_the_sandbox() {
    check(Mode::Sandboxed);
}

#[test]
fn a_recording_survives_its_file() {
    let recording = recording();
    let read = Recording::from_json(&recording.to_json()).unwrap();
    assert_eq!(
        (&read.guest, &read.digest, &read.asked, &read.output),
        (&recording.guest, &recording.digest, &recording.asked, &recording.output)
    );
    assert_eq!(read.to_json(), recording.to_json());
}

#[test]
fn malformed_files_say_what_is_wrong() {
    let text = recording().to_json();
    assert!(matches!(Recording::from_json("no"), Err(RecordingError::Json(_))));
    assert!(matches!(Recording::from_json(&text[..text.len() / 2]), Err(RecordingError::Json(_))));
    assert!(matches!(Recording::from_json("{}"), Err(RecordingError::Field("format"))));
    assert!(matches!(Recording::from_json("[]"), Err(RecordingError::Field("format"))));
    assert!(matches!(Recording::from_json(r#"{"format": 2}"#), Err(RecordingError::Format(2))));
    let without = |pointer: &str, value: serde_json::Value| {
        let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
        *file.pointer_mut(pointer).unwrap() = value;
        match Recording::from_json(&file.to_string()).unwrap_err() {
            RecordingError::Field(field) => field,
            other => panic!("{pointer}: {other}"),
        }
    };
    let null = serde_json::Value::Null;
    assert_eq!(without("/guest", null.clone()), "guest");
    assert_eq!(without("/digest", 1.into()), "digest");
    assert_eq!(without("/job", null.clone()), "job.args");
    assert_eq!(without("/job/function", null.clone()), "job.function");
    assert_eq!(without("/job/args/0", 7.into()), "job.args");
    assert_eq!(without("/asked", "none".into()), "asked");
    assert_eq!(without("/asked/0/query", null), "asked.query");
    assert_eq!(without("/asked/0/args", "none".into()), "asked.args");
    assert_eq!(without("/asked/0/answer", "not base64!".into()), "asked.answer");
}
