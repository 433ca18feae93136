//! Guest crates of the workspace as components.
//!
//! ```text
//! crate ──nested cargo, profile guest──▶ TARGET_DIR/wasm32-unknown-unknown/guest/NAME.wasm ──encode──▶ component
//! ```
//!
//! The nested cargo has a target folder of its own, [`folder`], because the outer one holds the lock of its own. All who compile
//! guests use the same one, so that what they have in common is compiled once.

use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What guests are compiled for.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// Why a guest is not there.
pub type Failure = Box<dyn Error + Send + Sync>;

/// The nested cargo's target folder, beside the profiles' in the target folder of the outer one.
pub fn folder(target: &Path) -> PathBuf {
    target.join("guests")
}

/// Compiles crates of a workspace; the answer is the folder of their modules.
///
/// # Errors
/// When they do not compile, or there is no cargo; what cargo said is on stderr.
pub fn compile(workspace: &Path, folder: &Path, packages: &[&str]) -> Result<PathBuf, Failure> {
    install_target();
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace).args(["build", "--profile", "guest", "--target", TARGET, "--target-dir"]);
    cargo.arg(folder);
    for package in packages {
        cargo.args(["-p", package]);
    }
    // What is meant for the host must not reach the guests: flags, wrappers, features and the outer profile's settings.
    for (name, _) in env::vars() {
        let outer = ["CARGO_FEATURE_", "CARGO_CFG_", "CARGO_PROFILE_"].iter().any(|prefix| name.starts_with(prefix));
        let single =
            ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "CARGO_BUILD_TARGET"];
        if outer || single.contains(&name.as_str()) {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status()?;
    if !status.success() {
        let hint = format!("is the target there? `rustup target add {TARGET}`");
        return Err(format!("{} do not compile for {TARGET} ({status}); {hint}", packages.join(", ")).into());
    }
    Ok(folder.join(TARGET).join("guest"))
}

/// The module of a crate, in the folder of modules.
pub fn module(modules: &Path, package: &str) -> PathBuf {
    modules.join(format!("{}.wasm", package.replace('-', "_")))
}

/// The component of a module.
///
/// # Errors
/// When it is none that was made with the SDK.
pub fn encode(module: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = fs::read(module).map_err(|error| format!("cannot read {}: {error}", module.display()))?;
    let encode = || wit_component::ComponentEncoder::default().validate(true).module(&bytes)?.encode();
    Ok(encode().map_err(|error| format!("{}: {error:#}", module.display()))?)
}

/// The files that cargo's `.d` file names as inputs of a module.
///
/// # Errors
/// When it is not there or not in cargo's form.
pub fn inputs(module: &Path) -> Result<BTreeSet<PathBuf>, Failure> {
    let text = fs::read_to_string(module.with_extension("d"))?;
    let (_, inputs) = text.split_once(": ").ok_or("the dependency file has no colon")?;
    // A space within a path is written with a backslash before it.
    let inputs = inputs.trim_end().replace("\\ ", "\u{0}");
    Ok(inputs.split(' ').map(|path| PathBuf::from(path.replace('\u{0}', " "))).collect())
}

/// Adds the guests' target to the toolchain when it is missing: rustup may be told not to follow `rust-toolchain.toml` by itself.
/// A failure shows in the build that follows, with what to do.
fn install_target() {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let found = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    let there = found.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir());
    if !there {
        eprintln!("installing the Rust target {TARGET}");
        let _ = Command::new("rustup").args(["target", "add", TARGET]).status();
    }
}
