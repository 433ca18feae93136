//! Turns .proto files into Rust: Envoy's, as packaged by `envoy-types`, and ours in `protos/`.
//!
//! ```text
//! envoy-types' proto/ ─┐                      ┌─> every file ──────────────────────> descriptors.bin
//! protos/ ─────────────┴─> protoc, one run ───┴─> import closure of roots.txt ─────> mod.rs (prost, tonic)
//! ```

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost::Message;
use prost_types::field_descriptor_proto::Label;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Services we speak. The others in the closure would only cost compile time.
const SERVICES: &[&str] = &[
    "envoy.service.discovery.v3.AggregatedDiscoveryService",
    "envoy.service.secret.v3.SecretDiscoveryService",
    "istio.v1.auth.IstioCertificateService",
];

/// Files of protobuf itself that any document may name within an Any, whether or not something imports them.
const WELL_KNOWN: &[&str] = &["any", "duration", "empty", "field_mask", "struct", "timestamp", "wrappers"];

fn main() -> Result<()> {
    // Cargo.toml pins the version of envoy-types, which is the only thing that moves its files.
    for path in ["build.rs", "Cargo.toml", "roots.txt", "protos"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-env-changed=PROTOC");

    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut roots = envoy_roots()?;
    roots.push(PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("protos"));

    let descriptors = out.join("descriptors.bin");
    run_protoc(&roots, &descriptors)?;
    let all = FileDescriptorSet::decode(fs::read(&descriptors)?.as_slice())?;
    generate(closure(all, &read_roots()?)?, &out)
}

/// The include folders of envoy-types. `cargo metadata` finds the package wherever it is: registry, vendored, or
/// replaced by a path.
fn envoy_roots() -> Result<Vec<PathBuf>> {
    let package = envoy_types_dir()?;
    let mut roots = Vec::new();
    for entry in fs::read_dir(package.join("proto"))? {
        let dir = entry?.path();
        if dir.is_dir() {
            // cel-spec alone keeps its files one level deeper.
            let is_nested = dir.ends_with("cel-spec");
            roots.push(if is_nested { dir.join("proto") } else { dir });
        }
    }
    roots.sort();
    Ok(roots)
}

fn envoy_types_dir() -> Result<PathBuf> {
    // Offline first: cargo does not tell build scripts that it was started with --offline, and a vendored or warm
    // registry needs no network. --locked first: a build script should not write the lock file if it can avoid it.
    let attempts: [&[&str]; 4] = [&["--offline", "--locked"], &["--offline"], &["--locked"], &[]];
    let mut last_error = String::new();
    for attempt in attempts {
        let output = Command::new(env::var("CARGO")?)
            .args(["metadata", "--format-version", "1"])
            // The platform that envoy-types is declared for; it keeps the answer short.
            .args(["--filter-platform", "x86_64-unknown-none"])
            .args(attempt)
            // Flags for the code that is built (sanitizers of a fuzz target, say) need not exist on that platform.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .current_dir(env::var("CARGO_MANIFEST_DIR")?)
            .output()?;
        if !output.status.success() {
            last_error = String::from_utf8_lossy(&output.stderr).into_owned();
            continue;
        }
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let manifest = metadata["packages"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|package| package["name"] == "envoy-types")
            .and_then(|package| package["manifest_path"].as_str())
            .ok_or("cargo metadata does not list envoy-types")?;
        let dir = Path::new(manifest).parent().ok_or("manifest path without a folder")?;
        return Ok(dir.to_path_buf());
    }
    Err(format!("cargo metadata failed, so Envoy's .proto files were not found: {last_error}").into())
}

fn run_protoc(roots: &[PathBuf], descriptors: &Path) -> Result<()> {
    let protoc = match env::var_os("PROTOC") {
        Some(path) => PathBuf::from(path),
        None => protoc_bin_vendored::protoc_bin_path()?,
    };
    let mut command = Command::new(protoc);
    let mut files: BTreeSet<PathBuf> =
        WELL_KNOWN.iter().map(|name| PathBuf::from(format!("google/protobuf/{name}.proto"))).collect();
    for root in roots {
        command.arg("-I").arg(root);
        collect_protos(root, root, &mut files)?;
    }
    command.arg("-I").arg(protoc_bin_vendored::include_path()?);
    // Without source info: comments of Envoy would become doc tests that do not compile.
    let output = command.args(["--include_imports", "-o"]).arg(descriptors).args(files).output()?;
    if !output.status.success() {
        return Err(format!("protoc: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

/// Collects the .proto files below `dir`, relative to `root` as imports name them.
fn collect_protos(root: &Path, dir: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_protos(root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.insert(path.strip_prefix(root)?.to_path_buf());
        }
    }
    Ok(())
}

/// roots.txt: one message or service per line, `#` starts a comment.
fn read_roots() -> Result<Vec<String>> {
    let text = fs::read_to_string("roots.txt")?;
    Ok(text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect())
}

/// Keeps the files that the roots need, and of their services only [`SERVICES`].
/// A root that ends in `.*` names a package.
fn closure(all: FileDescriptorSet, roots: &[String]) -> Result<FileDescriptorSet> {
    let by_name: BTreeMap<&str, &FileDescriptorProto> = all.file.iter().map(|file| (file.name(), file)).collect();
    let mut todo = Vec::new();
    for root in roots {
        let before = todo.len();
        todo.extend(all.file.iter().filter(|file| declares(file, root)).map(FileDescriptorProto::name));
        if todo.len() == before {
            return Err(format!("roots.txt: no file declares {root}").into());
        }
    }
    let mut keep = HashSet::new();
    while let Some(name) = todo.pop() {
        if keep.insert(name.to_owned()) {
            todo.extend(by_name[name].dependency.iter().map(String::as_str));
        }
    }
    let mut file: Vec<_> = all.file.into_iter().filter(|file| keep.contains(file.name())).collect();
    for file in &mut file {
        if file.syntax() == "proto3" {
            file.message_type.iter_mut().for_each(say_packed);
        }
        let package = file.package().to_owned();
        file.service.retain(|service| SERVICES.contains(&format!("{package}.{}", service.name()).as_str()));
    }
    Ok(FileDescriptorSet { file })
}

/// Says of each proto3 list what is the default, `packed`, where it has options and these do not say: prost-build takes
/// that for `packed = false`, and then its bytes would differ from everyone else's.
fn say_packed(message: &mut DescriptorProto) {
    for field in &mut message.field {
        if let (Label::Repeated, Some(options)) = (field.label(), &mut field.options) {
            options.packed.get_or_insert(true);
        }
    }
    message.nested_type.iter_mut().for_each(say_packed);
}

fn declares(file: &FileDescriptorProto, root: &str) -> bool {
    if let Some(package) = root.strip_suffix(".*") {
        return file.package() == package;
    }
    let Some((package, name)) = root.rsplit_once('.') else {
        return false;
    };
    file.package() == package
        && (file.message_type.iter().any(|message| message.name() == name)
            || file.service.iter().any(|service| service.name() == name))
}

fn generate(files: FileDescriptorSet, out: &Path) -> Result<()> {
    let mut config = prost_build::Config::new();
    config
        .out_dir(out)
        // Sorted maps: the same message always encodes to the same bytes.
        .btree_map(["."])
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        .include_file("mod.rs");
    if env::var_os("CARGO_FEATURE_GRPC").is_some() {
        config.service_generator(tonic_prost_build::configure().service_generator());
    }
    config.compile_fds(files)?;
    Ok(())
}
