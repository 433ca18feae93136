//! Where kube-apiserver, etcd and Helm come from.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::envoy::run;
use crate::{Say, workspace};

/// The Kubernetes that everything is tested with; `tests/apiserver/go.mod` names the same.
pub const VERSION: &str = "1.35.4";

/// The Helm that the chart is tested with.
pub const HELM_VERSION: &str = "3.20.2";

/// The programs of an API server.
#[derive(Clone, Debug)]
pub struct Programs {
    /// kube-apiserver.
    pub apiserver: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
}

/// Finds both: `$KUBE_APISERVER` and `$ETCD`, else what stands in `.cache/`, which is filled on first use.
///
/// # Errors
/// When one cannot be had; the message says what to do.
pub(crate) fn programs(say: Say) -> Result<Programs> {
    let (cache, _lock) = cache()?;
    let etcd = etcd(&cache, say).context("set ETCD to the path of an etcd binary to use that one instead")?;
    let apiserver = apiserver(&cache, say)
        .context("set KUBE_APISERVER to the path of a kube-apiserver binary to use that one instead")?;
    Ok(Programs { apiserver, etcd })
}

/// Finds Helm: `$HELM`, else what stands in `.cache/`, which is filled on first use.
///
/// # Errors
/// When it cannot be had; the message says what to do.
pub(crate) fn helm(say: Say) -> Result<PathBuf> {
    if let Some(given) = given("HELM")? {
        return Ok(given);
    }
    let (cache, _lock) = cache()?;
    let built = cache.join(format!("helm-{HELM_VERSION}"));
    if built.is_file() {
        return Ok(built);
    }
    let hint = "set HELM to the path of a helm binary (version 3) to use that one instead";
    let go = go().context("Helm is built from its Go module").context(hint)?;
    say(&format!("building Helm {HELM_VERSION} with Go: a few minutes, once"));
    let unfinished = cache.join("helm.part");
    let link = format!("-s -w -X helm.sh/helm/v3/internal/version.version=v{HELM_VERSION}");
    let mut build = Command::new(go);
    // Outside of any module of ours; Go's checksum database vouches for what comes.
    build.current_dir(&cache).args(["install", "-trimpath", "-ldflags", &link]);
    build.arg(format!("helm.sh/helm/v3/cmd/helm@v{HELM_VERSION}"));
    build.env("GOFLAGS", "-buildvcs=false").env("CGO_ENABLED", "0").env("GOBIN", &unfinished);
    run(&mut build)
        .context("Helm does not build: this needs the Go module proxy, or its modules in Go's cache")
        .context(hint)?;
    fs::rename(unfinished.join("helm"), &built)
        .with_context(|| format!("cannot move {} into place", built.display()))?;
    let _ = fs::remove_dir(&unfinished);
    Ok(built)
}

/// The folder for what is installed, locked: test processes run side by side, one installs, the others wait.
fn cache() -> Result<(PathBuf, File)> {
    let cache = workspace().join(".cache");
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let lock = File::create(cache.join("kubernetes.lock")).context("cannot make the lock file for Kubernetes")?;
    lock.lock().context("cannot lock the Kubernetes cache")?;
    Ok((cache, lock))
}

fn given(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(variable).map(PathBuf::from) else { return Ok(None) };
    if !path.is_file() {
        bail!("{variable} names {}, which is no file", path.display());
    }
    Ok(Some(path))
}

fn apiserver(cache: &Path, say: Say) -> Result<PathBuf> {
    if let Some(given) = given("KUBE_APISERVER")? {
        return Ok(given);
    }
    let built = cache.join(format!("kube-apiserver-{VERSION}"));
    if built.is_file() {
        return Ok(built);
    }
    let go = go().with_context(|| format!("kube-apiserver {VERSION} is built from tests/apiserver"))?;
    say(&format!("building kube-apiserver {VERSION} with Go: a few minutes, once"));
    let (major, minor) =
        VERSION.split_once('.').map(|(a, rest)| (a, rest.split('.').next().unwrap_or_default())).unwrap_or_default();
    let version = "k8s.io/component-base/version";
    // Without a version in it, clients stumble.
    let link =
        format!("-s -w -X {version}.gitVersion=v{VERSION} -X {version}.gitMajor={major} -X {version}.gitMinor={minor}");
    let unfinished = built.with_extension("part");
    let mut build = Command::new(go);
    build
        .current_dir(workspace().join("tests/apiserver"))
        .args(["build", "-trimpath", "-ldflags", &link, "-o"])
        .arg(&unfinished)
        .arg(".");
    // A version control system is nobody's business here, and may refuse.
    build.env("GOFLAGS", "-buildvcs=false -mod=readonly").env("CGO_ENABLED", "0");
    run(&mut build)
        .context("kube-apiserver does not build: this needs the Go module proxy, or its modules in Go's cache")?;
    fs::rename(&unfinished, &built).with_context(|| format!("cannot move {} into place", built.display()))?;
    Ok(built)
}

fn go() -> Result<PathBuf> {
    for name in ["go", "/usr/local/go/bin/go"] {
        if Command::new(name).arg("version").output().is_ok_and(|output| output.status.success()) {
            return Ok(name.into());
        }
    }
    bail!("there is no Go (1.25 or later) on the PATH (Debian: apt-get install golang-go)")
}

fn etcd(cache: &Path, say: Say) -> Result<PathBuf> {
    if let Some(given) = given("ETCD")? {
        return Ok(given);
    }
    if Command::new("etcd").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok("etcd".into());
    }
    let home = cache.join("etcd");
    let binary = home.join("usr/bin/etcd");
    if binary.is_file() {
        return Ok(binary);
    }
    say("unpacking Debian's package etcd-server into .cache");
    let unfinished = cache.join("etcd.part");
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(&unfinished).with_context(|| format!("cannot make {}", unfinished.display()))?;
    let download =
        || run(Command::new("apt-get").current_dir(&unfinished).args(["download", "--quiet", "etcd-server"]));
    if download().is_err() {
        // The lists may be missing or old; only root may fetch them.
        run(Command::new("apt-get").args(["update", "--quiet"])).context(
            "there is no etcd on the PATH, and Debian's package etcd-server cannot be fetched (apt-get install etcd-server)",
        )?;
        download().context("Debian's package etcd-server cannot be fetched")?;
    }
    let packages = fs::read_dir(&unfinished).context("cannot read the download")?;
    let package =
        packages.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
    run(Command::new("dpkg-deb")
        .arg("--extract")
        .arg(package.context("apt-get fetched no package")?)
        .arg(&unfinished))?;
    let _ = fs::remove_dir_all(&home);
    fs::rename(&unfinished, &home).with_context(|| format!("cannot move the package to {}", home.display()))?;
    if !binary.is_file() {
        bail!("Debian's package etcd-server holds no usr/bin/etcd");
    }
    Ok(binary)
}
