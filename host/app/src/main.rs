//! `trysail`: see `trysail help`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use trysail::pipeline::{self, Mode, Options};
use trysail::render;

/// A control plane for the Istio service mesh whose translation stages are sandboxed WebAssembly components.
#[derive(Parser)]
#[command(version, disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes what proxies would be sent as JSON, one file a type.
    Render {
        /// A scenario folder, or any folder of YAML together with --proxies.
        #[arg(required_unless_present = "all")]
        folder: Option<PathBuf>,
        /// Renders every scenario (a folder with input.yaml and proxies.yaml) below this folder.
        #[arg(long, value_name = "ROOT", conflicts_with = "folder")]
        all: Option<PathBuf>,
        /// Folder for the files; with --all it mirrors the folders.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// The proxies, in place of the folder's proxies.yaml.
        #[arg(long, value_name = "FILE")]
        proxies: Option<PathBuf>,
        /// Runs the stages as native code, not as components.
        #[arg(long)]
        native: bool,
        /// With --all: only scenarios whose path contains this text.
        #[arg(long, default_value = "")]
        only: String,
    },
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trysail: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Render { folder, all, out, proxies, native, only } => {
            let mode = if native { Mode::Native } else { Mode::Sandboxed };
            let options = Options { mode, hold_back: false, audit_share: 0.0, ..Options::default() };
            match (folder, all) {
                (Some(folder), None) => render_one(&options, &folder, proxies.as_deref(), &out),
                (None, Some(root)) => render_all(&options, &root, &only, &out),
                _ => bail!("name a folder, or --all ROOT"),
            }
        }
    }
}

fn render_one(options: &Options, folder: &std::path::Path, proxies: Option<&std::path::Path>, out: &std::path::Path) -> Result<()> {
    let stages = pipeline::stages(options)?;
    let work = || render::scenario(options, &stages, folder, proxies, out);
    let rendered = on_a_big_stack(work)?;
    for line in rendered.refused {
        eprintln!("refused: {line}");
    }
    for line in rendered.warnings {
        eprintln!("warning: {line}");
    }
    println!("{} resources in {}", rendered.n_resources, out.display());
    Ok(())
}

fn render_all(options: &Options, root: &std::path::Path, only: &str, out: &std::path::Path) -> Result<()> {
    let stages = pipeline::stages(options)?;
    let mut scenarios = render::scenarios(root)?;
    scenarios.retain(|folder| folder.display().to_string().contains(only));
    let (next, n_failed, n_resources) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        while let Some(folder) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
            let name = folder.strip_prefix(root).unwrap_or(folder);
            match render::scenario(options, &stages, folder, None, &out.join(name)) {
                Ok(rendered) => {
                    n_resources.fetch_add(rendered.n_resources, Ordering::Relaxed);
                }
                Err(error) => {
                    n_failed.fetch_add(1, Ordering::Relaxed);
                    eprintln!("{}: {error:#}", name.display());
                }
            }
        }
    };
    let n_workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| -> Result<()> {
        for _ in 0..n_workers {
            let builder = std::thread::Builder::new().stack_size(trysail_stages::STACK);
            builder.spawn_scoped(scope, work).context("cannot start a thread")?;
        }
        Ok(())
    })?;
    println!("{} scenarios, {} resources in {}", scenarios.len(), n_resources.into_inner(), out.display());
    match n_failed.into_inner() {
        0 => Ok(()),
        n => bail!("{n} scenarios could not be rendered"),
    }
}

/// Calls nest, each on its guest's stack: evaluation wants more than a main thread has.
fn on_a_big_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().stack_size(trysail_stages::STACK);
        let thread = builder.spawn_scoped(scope, work).context("cannot start a thread")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
