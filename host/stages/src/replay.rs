//! Recordings of calls: what a guest was asked, what it asked, and what it returned, in one file.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use trysail_model::Proxy;
use trysail_sdk::{CallRef, Entry, Outcome, Output, Part};

use crate::calls::Call;
use crate::engine::Engine;
use crate::eval::Cx;
use crate::fault::FaultKind;
use crate::guest::{Done, Guest, Job, Limits, Unanswered};
use crate::run::{Asked, Player, Runner};

/// A recorded call.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Stage or plugin, by name.
    pub guest: String,
    /// Digest of its code at the time.
    pub digest: String,
    /// What it was to do.
    pub job: Job,
    /// What it asked and was told.
    pub asked: Vec<Asked>,
    /// What it returned, as JSON.
    pub output: Value,
}

/// Why a file is no recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// Not JSON.
    #[error("not a recording: not JSON")]
    Json(#[from] serde_json::Error),
    /// A field is missing or of another type.
    #[error("not a recording: field {0} is missing or malformed")]
    Field(&'static str),
    /// Written by a later version.
    #[error("recording has format {0}, this version reads 1")]
    Format(u64),
}

/// How a replay ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Replayed {
    /// The same output.
    Same,
    /// Another output: recorded and now.
    Different(Value, Value),
    /// A fault.
    Fault(FaultKind),
}

impl Recording {
    /// The recording as a file's text.
    pub fn to_json(&self) -> String {
        let asked = self.asked.iter().map(|asked| {
            json!({"query": asked.kind, "args": asked.args, "answer": asked.answer.as_ref().map(|bytes| BASE64.encode(bytes))})
        });
        let job = match &self.job {
            Job::Translate { function, args } => json!({"function": &**function, "args": &**args}),
            Job::Apply { point, args, items, .. } => {
                let items: Vec<Value> =
                    items.iter().map(|(key, message)| json!({"key": key, "message": BASE64.encode(message)})).collect();
                json!({"point": &**point, "args": &**args, "items": items})
            }
        };
        let file = json!({
            "format": 1,
            "guest": self.guest,
            "digest": self.digest,
            "job": job,
            "asked": asked.collect::<Vec<_>>(),
            "output": self.output,
        });
        format!("{file:#}\n")
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// When it is no recording of a format that this version reads.
    pub fn from_json(text: &str) -> Result<Recording, RecordingError> {
        let file: Value = serde_json::from_str(text)?;
        match file["format"].as_u64() {
            Some(1) => {}
            Some(other) => return Err(RecordingError::Format(other)),
            None => return Err(RecordingError::Field("format")),
        }
        let strings = |value: &Value, field| -> Result<Vec<String>, RecordingError> {
            let list = value.as_array().ok_or(RecordingError::Field(field))?;
            list.iter().map(|v| v.as_str().map(str::to_owned).ok_or(RecordingError::Field(field))).collect()
        };
        let binary = |value: &Value, field| -> Result<Bytes, RecordingError> {
            let text = value.as_str().ok_or(RecordingError::Field(field))?;
            Ok(BASE64.decode(text).map_err(|_| RecordingError::Field(field))?.into())
        };
        let text = |value: &Value, field| value.as_str().map(str::to_owned).ok_or(RecordingError::Field(field));
        let job = &file["job"];
        let args: Arc<[String]> = strings(&job["args"], "job.args")?.into();
        let job = if let Some(point) = job["point"].as_str() {
            let items = job["items"].as_array().ok_or(RecordingError::Field("job.items"))?;
            let item = |item: &Value| {
                Ok((text(&item["key"], "job.items.key")?, binary(&item["message"], "job.items.message")?))
            };
            let items: Result<Vec<_>, RecordingError> = items.iter().map(item).collect();
            Job::Apply { point: point.into(), args, items: items?.into(), terms: None }
        } else {
            Job::Translate { function: text(&job["function"], "job.function")?.into(), args }
        };
        let asked = file["asked"].as_array().ok_or(RecordingError::Field("asked"))?.iter().map(|asked| {
            Ok(Asked {
                kind: text(&asked["query"], "asked.query")?,
                args: strings(&asked["args"], "asked.args")?,
                answer: if asked["answer"].is_null() { None } else { Some(binary(&asked["answer"], "asked.answer")?) },
            })
        });
        Ok(Recording {
            guest: text(&file["guest"], "guest")?,
            digest: text(&file["digest"], "digest")?,
            job,
            asked: asked.collect::<Result<_, RecordingError>>()?,
            output: file["output"].clone(),
        })
    }

    /// Runs the call again with the recorded answers.
    pub fn replay(&self, guest: &dyn Guest, limits: &Limits) -> Replayed {
        let player = Player { log: self.asked.clone(), at: 0, surprise: None };
        let (result, asker) = guest.run(&self.job, Box::new(player), limits, true);
        let player = asker.into_any().downcast::<Player>().expect("a guest returns the asker that it was given");
        if let Some(surprise) = player.surprise {
            return Replayed::Fault(FaultKind::Impure(surprise));
        }
        match result {
            Ok(done) => {
                let now = outcome_json(&done);
                if now == self.output { Replayed::Same } else { Replayed::Different(self.output.clone(), now) }
            }
            Err(Unanswered::Own(kind)) => Replayed::Fault(kind),
            Err(Unanswered::Below(fault)) => Replayed::Fault(fault.kind),
        }
    }
}

impl Engine {
    /// Runs a stage's function for a proxy and records it. `None` when the stage is not there or faults.
    pub fn record(self: &Arc<Self>, proxy: &Proxy, stage: &str, function: &str, args: &[&str]) -> Option<Recording> {
        let _in_use = self.in_use.read_recursive();
        let memo = self.memos.of(Call::stage(stage, function, args));
        let guest = self.guests.read().get(stage).cloned()?;
        let mut cx: Cx = self.cx(proxy);
        let runner = Runner { engine: self, memo: &memo, is_second: false, keeps_log: true };
        let ran = runner.run(&mut cx);
        let output = ran.result.ok()?;
        Some(Recording {
            guest: guest.name().to_owned(),
            digest: guest.digest().to_owned(),
            job: Job::Translate { function: function.into(), args: args.iter().map(|arg| (*arg).to_owned()).collect() },
            asked: ran.log,
            output: outcome_json(&Done::Output(output)),
        })
    }
}

fn outcome_json(done: &Done) -> Value {
    match done {
        Done::Output(output) | Done::Outcome(Outcome::Replaced(output)) => output_json(output),
        Done::Outcome(Outcome::Unchanged) => json!("unchanged"),
        Done::Outcome(Outcome::Edited(edits)) => json!({"edits": format!("{edits:?}")}),
    }
}

/// An output as JSON, in a form that a person can compare: bytes as base64, everything else by name.
pub fn output_json(output: &Output) -> Value {
    let call = |call: &CallRef| {
        let CallRef { stage, function, args, field, hook } = call;
        json!({"stage": stage, "function": function, "args": args, "field": field, "hook": hook})
    };
    let part = |part: &Part| match part {
        Part::Bytes(bytes) => json!({"bytes": BASE64.encode(bytes)}),
        Part::Open(number) => json!({"open": number}),
        Part::Close => json!("close"),
        Part::Call(inner) => json!({"call": call(inner)}),
    };
    let entry = |entry: &Entry| match entry {
        Entry::Include(inner) => json!({"include": call(inner)}),
        Entry::Item(item) => {
            let parts: Vec<Value> = item.message.parts.iter().map(part).collect();
            json!({"key": item.key, "parts": parts, "claims": item.claims, "refs": item.refs})
        }
    };
    let diagnostic = |d: &trysail_sdk::Diagnostic| json!({"severity": format!("{:?}", d.severity), "object": d.object, "field": d.field, "message": d.message});
    let mut map = Map::new();
    map.insert("entries".into(), output.entries.iter().map(entry).collect());
    map.insert("diagnostics".into(), output.diagnostics.iter().map(diagnostic).collect());
    Value::Object(map)
}
