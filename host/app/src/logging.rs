//! Logs: levels by scope as istiod has them, lines or JSON, files, and spans to an OpenTelemetry collector.
//!
//! ```text
//!  tracing ─▶ Scopes (levels, changed while running) ─▶ format ─▶ stdout, stderr, files
//!        └──▶ spans of our own ─────────────────────────▶ export ─▶ collector (OTLP over HTTP)
//! ```
//!
//! Not for the log are keys, tokens and whole resources; whoever writes a line sees to that.

mod export;
mod format;
mod scopes;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::runtime::Handle;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt, reload};

pub use export::{Export, Exporting};
pub use scopes::{Level, Scope, Scopes};

/// What is logged, how and where.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `scope:level,...` (`--log_output_level`); unset: what `RUST_LOG` says, else warnings.
    pub levels: Option<String>,
    /// Scopes whose lines say where in the code they come from (`--log_caller`).
    pub callers: String,
    /// JSON instead of lines (`--log_as_json`).
    pub as_json: bool,
    /// `stdout`, `stderr` or files (`--log_target`); none means stderr.
    pub targets: Vec<String>,
    /// Spans to a collector.
    pub export: Option<Export>,
}

/// Starts to log. The scopes are for changes while running; what is returned beside them has to live until the end.
///
/// # Errors
/// When a level or scope is malformed, a file cannot be opened, or the collector's address is none.
pub fn start(config: &Config, runtime: Option<&Handle>) -> Result<(Arc<Scopes>, Option<Exporting>)> {
    let (scopes, warnings) = Scopes::new(config.levels.as_deref(), &config.callers)?;
    let initial = match (&config.levels, EnvFilter::try_from_default_env()) {
        (None, Ok(filter)) => filter,
        (None, Err(_)) => EnvFilter::new("warn,kube_client=off"),
        (Some(_), _) => scopes.filter(),
    };
    let (filter, handle) = reload::Layer::new(initial);
    let scopes = Arc::new(scopes.on_change(move |filter| {
        // The subscriber lives as long as the process; without it there is nothing to change.
        drop(handle.reload(filter));
    }));
    let format = format::Format { as_json: config.as_json, scopes: scopes.clone() };
    let writer = Arc::new(Targets::open(&config.targets)?);
    let lines = fmt::layer().event_format(format).with_writer(move || Writer(writer.clone())).with_filter(filter);
    let (layer, exporting) = match (&config.export, runtime) {
        (Some(export), Some(runtime)) => {
            let (layer, exporting) = export.start(runtime.clone())?;
            (Some(layer), Some(exporting))
        }
        _ => (None, None),
    };
    tracing_subscriber::registry().with(layer).with(lines).try_init().context("logs were started before")?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok((scopes, exporting))
}

/// Where lines go: each to all of them.
struct Targets(Vec<Target>);

enum Target {
    Stdout,
    Stderr,
    File(File),
}

impl Targets {
    fn open(names: &[String]) -> Result<Targets> {
        let open = |name: &String| match name.as_str() {
            "stdout" => Ok(Target::Stdout),
            "stderr" => Ok(Target::Stderr),
            path => {
                let file = OpenOptions::new().create(true).append(true).open(PathBuf::from(path));
                Ok(Target::File(file.with_context(|| format!("cannot open --log_target {path}"))?))
            }
        };
        let named = names.iter().filter(|name| !name.is_empty()).map(open).collect::<Result<Vec<_>>>()?;
        Ok(Targets(if named.is_empty() { vec![Target::Stderr] } else { named }))
    }
}

impl Write for &Targets {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        for target in &self.0 {
            // A closed terminal or a full disk is no reason to stop serving.
            let _ = match target {
                Target::Stdout => io::stdout().lock().write_all(line),
                Target::Stderr => io::stderr().lock().write_all(line),
                Target::File(file) => (&*file).write_all(line),
            };
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A shared [`Targets`] as the subscriber takes it.
struct Writer(Arc<Targets>);

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        (&*self.0).write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
