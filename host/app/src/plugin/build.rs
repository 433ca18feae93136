//! The component of a crate.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// What guests are compiled for.
const TARGET: &str = "wasm32-unknown-unknown";

/// Compiles a crate and makes the component; the component's file.
pub(super) fn build(given: &Path, out: Option<&Path>) -> Result<PathBuf> {
    if !given.join("Cargo.toml").is_file() {
        bail!("{} is no crate: it has no Cargo.toml", given.display());
    }
    let folder = given.canonicalize().with_context(|| format!("cannot read {}", given.display()))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    has_target(&cargo, &folder)?;
    let mut command = Command::new(&cargo);
    command.args(["build", "--release", "--target", TARGET, "--message-format", "json-render-diagnostics"]);
    // The crate's own toolchain is chosen by the folder that cargo is started in.
    command.current_dir(&folder).stderr(std::process::Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the plugin does not compile; cargo says above why");
    }
    let modules = String::from_utf8_lossy(&output.stdout);
    let module = modules.lines().filter_map(artefact).next_back();
    let module = module.context("the crate makes no module: its [lib] needs crate-type = [\"cdylib\"]")?;
    let bytes = std::fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
    let name = module.file_stem().and_then(|stem| stem.to_str()).unwrap_or("plugin").replace('_', "-");
    let made = out.map_or_else(|| given.join("target").join(format!("{name}.wasm")), Path::to_owned);
    let component = component(&bytes).with_context(|| format!("{} cannot be made a component", module.display()))?;
    if let Some(parent) = made.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    std::fs::write(&made, component).with_context(|| format!("cannot write {}", made.display()))?;
    Ok(made)
}

/// Is the standard library of guests there? Asked first, since cargo compiles for a minute before it says so.
fn has_target(cargo: &OsStr, folder: &Path) -> Result<()> {
    // The compiler that goes with this cargo.
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| {
        let beside = Path::new(cargo).with_file_name("rustc");
        if beside.is_file() { beside.into() } else { "rustc".into() }
    });
    let mut command = Command::new(rustc);
    command.args(["--print", "target-libdir", "--target", TARGET]).current_dir(folder);
    // Who cannot be asked may be able to compile all the same.
    let Ok(output) = command.output() else { return Ok(()) };
    let library = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && !Path::new(&library).is_dir() {
        bail!(
            "the Rust compiler has no standard library for {TARGET} yet: run `rustup target add {TARGET}` in {}",
            folder.display()
        );
    }
    Ok(())
}

/// The module that a line of cargo's says it made.
fn artefact(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let files = message.get("filenames").filter(|_| message["reason"] == "compiler-artifact")?.as_array()?;
    files.iter().filter_map(Value::as_str).find(|file| file.ends_with(".wasm")).map(PathBuf::from)
}

/// The component of a module, with what the module carries for the host.
///
/// # Errors
/// When it is no module that was made with the SDK.
pub fn component(module: &[u8]) -> Result<Vec<u8>> {
    let mut component = wit_component::ComponentEncoder::default().validate(true).module(module)?.encode()?;
    let carried = trysail_plugins::configuration::schema(&component).map_err(anyhow::Error::msg)?;
    if let (None, Some(schema)) = (carried, trysail_plugins::configuration::schema(module).map_err(anyhow::Error::msg)?)
    {
        trysail_plugins::configuration::carry(&mut component, &schema);
    }
    Ok(component)
}
