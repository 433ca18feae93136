//! Compiles the guests and embeds them.

use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The built-in stages: crate `stage-NAME` below `plugins/`.
const STAGES: [&str; 7] = ["clusters", "dns", "endpoints", "listeners", "routes", "scope", "security"];

/// What guests are compiled for.
const TARGET: &str = "wasm32-unknown-unknown";

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let workspace = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    // OUT_DIR is TARGET/PROFILE/build/CRATE-HASH/out.
    let profile = out.ancestors().nth(3).ok_or("the output folder lies elsewhere than cargo puts it")?.to_owned();
    let guests = profile.parent().ok_or("the profile's folder has no parent")?.join("guests");

    install_target();
    build(&workspace, &guests)?;

    let modules = guests.join(TARGET).join("guest");
    let components = profile.join("components");
    fs::create_dir_all(&components)?;
    let mut list = String::from("/// All built-in stages, by name.\npub const BUILTINS: &[Builtin] = &[\n");
    let mut inputs = BTreeSet::new();
    for stage in STAGES {
        let module = fs::read(modules.join(format!("stage_{stage}.wasm")))?;
        let component = wit_component::ComponentEncoder::default().validate(true).module(&module)?.encode()?;
        let file = components.join(format!("{stage}.component.wasm"));
        // Written only when it changed, so that the time of the file tells something.
        if fs::read(&file).ok().as_deref() != Some(&component) {
            fs::write(&file, &component)?;
        }
        writeln!(
            list,
            "    Builtin {{ name: {stage:?}, component: include_bytes!({:?}) }},",
            file.display().to_string()
        )?;
        inputs.extend(dependencies(&modules.join(format!("stage_{stage}.d")))?);
    }
    list.push_str("];\n");
    fs::write(out.join("builtins.rs"), list)?;

    inputs.extend(["wit", "Cargo.lock", "Cargo.toml"].map(|name| workspace.join(name)));
    inputs.extend(STAGES.map(|stage| workspace.join("plugins").join(stage).join("Cargo.toml")));
    inputs.insert(workspace.join("plugins/sdk/Cargo.toml"));
    inputs.insert(workspace.join("proto/Cargo.toml"));
    for input in inputs {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    Ok(())
}

/// Adds the guests' target to the toolchain when it is missing: rustup may be told not to follow `rust-toolchain.toml` by itself.
/// A failure shows in the build that follows, with what to do.
fn install_target() {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let found = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    let there = found.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir());
    if !there {
        println!("cargo::warning=installing the Rust target {TARGET}");
        let _ = Command::new("rustup").args(["target", "add", TARGET]).status();
    }
}

/// Runs cargo for the guests' target.
fn build(workspace: &Path, target: &Path) -> Result<(), Box<dyn Error>> {
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo.current_dir(workspace).args([
        "build",
        "--profile",
        "guest",
        "--target",
        "wasm32-unknown-unknown",
        "--target-dir",
    ]);
    cargo.arg(target);
    for stage in STAGES {
        cargo.args(["-p", &format!("stage-{stage}")]);
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
        return Err(format!(
            "the stages do not compile for wasm32-unknown-unknown ({status}); is the target there? `rustup target add wasm32-unknown-unknown`"
        )
        .into());
    }
    Ok(())
}

/// The files that cargo's `.d` file names as inputs of a module.
fn dependencies(file: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let text = fs::read_to_string(file)?;
    let (_, inputs) = text.split_once(": ").ok_or("the dependency file has no colon")?;
    // A space within a path is written with a backslash before it.
    let inputs = inputs.trim_end().replace("\\ ", "\u{0}");
    Ok(inputs.split(' ').map(|path| PathBuf::from(path.replace('\u{0}', " "))).collect())
}
