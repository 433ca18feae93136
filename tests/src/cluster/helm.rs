//! Helm, with nothing of the user's own: no plugins, no repositories, no kubeconfig but the one that is given.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize as _;
use serde_json::Value;
use tempfile::TempDir;

use super::install;
use crate::Say;

/// The program, and a home for it.
pub struct Helm {
    program: PathBuf,
    home: TempDir,
    n_files: AtomicUsize,
}

impl Helm {
    /// Finds it; the first use on a machine compiles it, which takes some minutes.
    ///
    /// # Errors
    /// When it cannot be had, with what to do about it.
    pub fn find(say: Say) -> Result<Helm> {
        let home = tempfile::tempdir().context("no folder for Helm")?;
        Ok(Helm { program: install::helm(say)?, home, n_files: AtomicUsize::new(0) })
    }

    /// Runs it; what it printed.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn run(&self, kubeconfig: Option<&Path>, args: &[impl AsRef<str>]) -> Result<String> {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let mut command = Command::new(&self.program);
        command.args(&args).env("KUBECONFIG", "/dev/null");
        for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(folder, self.home.path().join(folder));
        }
        if let Some(kubeconfig) = kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        let output = command.output().context("cannot run Helm")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!("helm {}: {}{}", args.join(" "), text(&output.stdout), text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    /// The arguments of a command that takes a chart: `install NAME CHART ...`, with these values.
    ///
    /// # Errors
    /// When the values cannot be written.
    pub fn with_values(&self, command: &[&str], namespace: &str, values: &Value) -> Result<Vec<String>> {
        let at = self.n_files.fetch_add(1, Ordering::Relaxed);
        let file = self.home.path().join(format!("values-{at}.json"));
        std::fs::write(&file, values.to_string()).context("cannot write values")?;
        let mut args: Vec<String> = command.iter().map(|arg| (*arg).to_owned()).collect();
        args.extend([
            "--namespace".to_owned(),
            namespace.to_owned(),
            "--values".to_owned(),
            file.display().to_string(),
        ]);
        Ok(args)
    }

    /// The objects that a chart makes of values, without a cluster.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn template(&self, chart: &Path, namespace: &str, values: &Value) -> Result<Vec<Value>> {
        let args = self.with_values(&["template", "trysail", &chart.display().to_string()], namespace, values)?;
        let text = self.run(None, &args)?;
        let documents = serde_yaml_ng::Deserializer::from_str(&text).map(Value::deserialize);
        let documents: Vec<Value> = documents.collect::<Result<_, _>>().context("Helm made no YAML")?;
        Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
    }
}
