//! Compiles the guests and embeds them.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use trysail_guests::Failure;

/// The built-in stages: crate `stage-NAME` below `plugins/`.
const STAGES: [&str; 8] = ["clusters", "dns", "endpoints", "envoyfilter", "listeners", "routes", "scope", "security"];

fn main() -> Result<(), Failure> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let workspace = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    // OUT_DIR is TARGET/PROFILE/build/CRATE-HASH/out.
    let profile = out.ancestors().nth(3).ok_or("the output folder lies elsewhere than cargo puts it")?.to_owned();
    let folder = trysail_guests::folder(profile.parent().ok_or("the profile's folder has no parent")?);

    let packages = STAGES.map(|stage| format!("stage-{stage}"));
    let modules = trysail_guests::compile(&workspace, &folder, &packages.each_ref().map(String::as_str))?;
    let components = profile.join("components");
    fs::create_dir_all(&components)?;
    let mut list = String::from("/// All built-in stages, by name.\npub const BUILTINS: &[Builtin] = &[\n");
    let mut inputs = BTreeSet::new();
    for (stage, package) in STAGES.iter().zip(&packages) {
        let module = trysail_guests::module(&modules, package);
        let component = trysail_guests::encode(&module)?;
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
        inputs.extend(trysail_guests::inputs(&module)?);
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
