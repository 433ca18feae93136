//! Compiles the guests and embeds them.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use trysail_guests::Failure;

/// The built-in stages: crate `stage-NAME` below `plugins/`.
const STAGES: [&str; 8] = ["clusters", "dns", "endpoints", "envoyfilter", "listeners", "routes", "scope", "security"];

/// The plugins that come with Trysail: crate `plugin-NAME` below `plugins/`.
const PLUGINS: [&str; 1] = ["patch"];

fn main() -> Result<(), Failure> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let workspace = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    // OUT_DIR is TARGET/PROFILE/build/CRATE-HASH/out.
    let profile = out.ancestors().nth(3).ok_or("the output folder lies elsewhere than cargo puts it")?.to_owned();
    let folder = trysail_guests::folder(profile.parent().ok_or("the profile's folder has no parent")?);

    let stages = STAGES.iter().map(|stage| (*stage, format!("stage-{stage}"), "BUILTINS"));
    let plugins = PLUGINS.iter().map(|plugin| (*plugin, format!("plugin-{plugin}"), "PLUGINS"));
    let guests: Vec<(&str, String, &str)> = stages.chain(plugins).collect();
    let packages: Vec<&str> = guests.iter().map(|(_, package, _)| package.as_str()).collect();
    let modules = trysail_guests::compile(&workspace, &folder, &packages)?;
    let components = profile.join("components");
    fs::create_dir_all(&components)?;
    let (mut of_stages, mut of_plugins, mut inputs) = (String::new(), String::new(), BTreeSet::new());
    for (name, package, list) in &guests {
        let module = trysail_guests::module(&modules, package);
        let component = trysail_guests::encode(&module)?;
        let file = components.join(format!("{name}.component.wasm"));
        // Written only when it changed, so that the time of the file tells something.
        if fs::read(&file).ok().as_deref() != Some(&component) {
            fs::write(&file, &component)?;
        }
        let path = file.display().to_string();
        match *list {
            "BUILTINS" => {
                writeln!(of_stages, "    Builtin {{ name: {name:?}, component: include_bytes!({path:?}) }},")?;
            }
            _ => writeln!(of_plugins, "    ({name:?}, include_bytes!({path:?})),")?,
        }
        inputs.extend(trysail_guests::inputs(&module)?);
    }
    let list = format!(
        "/// All built-in stages, by name.\npub const BUILTINS: &[Builtin] = &[\n{of_stages}];\n\
         /// All plugins that come with Trysail, by name.\npub const PLUGINS: &[(&str, &[u8])] = &[\n{of_plugins}];\n"
    );
    fs::write(out.join("builtins.rs"), list)?;

    inputs.extend(["wit", "Cargo.lock", "Cargo.toml"].map(|name| workspace.join(name)));
    inputs.extend(guests.iter().map(|(name, ..)| workspace.join("plugins").join(name).join("Cargo.toml")));
    inputs.insert(workspace.join("plugins/sdk/Cargo.toml"));
    inputs.insert(workspace.join("proto/Cargo.toml"));
    for input in inputs {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    Ok(())
}
