//! What a component is.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use trysail_plugins::configuration;

use crate::images;
use crate::pipeline::{self, Mode, Options};

/// Pushes a component that loads.
pub(super) fn push(file: &Path, image: &str, flags: &images::Flags) -> Result<()> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let loaded = pipeline::load(&Options { mode: Mode::Sandboxed, ..Options::default() })?;
    let runtime = loaded.runtime.context("plugins need the sandbox")?;
    let surface = runtime.surface(&bytes).with_context(|| format!("{} is no component", file.display()))?;
    runtime.plugin("pushed", &bytes).with_context(|| format!("{} does not load", file.display()))?;
    let n_bytes = bytes.len();
    let pushed = images::push(bytes, image, (&surface.imports, &surface.exports), flags)?;
    // What a script wants alone on the standard output.
    eprintln!("{n_bytes} bytes pushed, with the tag {}; for spec.component.image of a Plugin:", pushed.tag);
    println!("{}", pushed.image);
    Ok(())
}

pub(super) fn inspect(place: &str, bytes: &[u8], as_json: bool) -> Result<()> {
    let options = Options { mode: Mode::Sandboxed, ..Options::default() };
    let loaded = pipeline::load(&options)?;
    let runtime = loaded.runtime.context("plugins need the sandbox")?;
    let surface = runtime.surface(bytes).with_context(|| format!("{place} is no component"))?;
    let loads = runtime.plugin("inspected", bytes);
    let schema = configuration::schema(bytes).map_err(anyhow::Error::msg)?;
    let limits = trysail_stages::Limits::default();
    let (hooks, digest, misfit) = match &loads {
        Ok((guest, hooks)) => (hooks.clone(), Some(guest.digest().to_owned()), None),
        Err(error) => (Vec::new(), None, Some(error.to_string())),
    };
    let found = json!({
        "file": place,
        "bytes": bytes.len(),
        "digest": digest,
        "lines": surface.lines,
        "hooks": hooks,
        "questions": surface.questions,
        "imports": surface.imports,
        "schema": schema,
        "limits": {"memoryMiB": limits.memory >> 20, "milliseconds": limits.deadline.as_millis() as u64,
            "outputKiB": limits.output >> 10, "queries": limits.queries},
        "misfit": misfit,
    });
    if as_json {
        println!("{found:#}");
        return Ok(());
    }
    let list = |value: &Value| {
        let texts: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
    };
    println!("{place}: {} bytes, digest {}", bytes.len(), digest.as_deref().unwrap_or("none"));
    println!("interfaces:  {}", list(&found["lines"]));
    println!("hooks:       {}", list(&found["hooks"]));
    println!("can ask:     {}", list(&found["questions"]));
    println!(
        "limits:      {} MiB, {} ms, {} KiB of output, {} questions a call, unless its document says otherwise",
        found["limits"]["memoryMiB"],
        found["limits"]["milliseconds"],
        found["limits"]["outputKiB"],
        found["limits"]["queries"]
    );
    match &schema {
        Some(schema) => println!("configuration: {schema}"),
        None => println!("configuration: it carries no schema, so anything is taken"),
    }
    if let Some(misfit) = misfit {
        println!("does not load: {misfit}");
    }
    Ok(())
}
