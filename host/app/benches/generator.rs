//! istiod's generator benchmark at full size: a proxy's clusters, listeners, routes and endpoints, each type made by its stage
//! in the sandbox, with limits and gate, and nothing that the stage made remembered from one round to the next.
//!
//! `prepared` has what istiod's benchmark has before its clock starts: the registry's indexes and the proxy's scope. `nothing`
//! begins with an engine that has never run: scope, instances of the stages and every answer included. The cases lie in
//! `TRYSAIL_BENCHMARKS`, by default `../shared/corpus/benchmarks-full`; without them the benchmark says that it was skipped.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion};
use trysail::pipeline::{self, Mode, Options};
use trysail::render;
use trysail_facts::FactsSnapshot;
use trysail_model::ids::type_urls;
use trysail_model::{Proxy, TypeUrl, Watched};
use trysail_stages::Engine;

fn cases() -> Vec<PathBuf> {
    let folder = std::env::var_os("TRYSAIL_BENCHMARKS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus/benchmarks-full"),
        PathBuf::from,
    );
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut cases: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.join("input.yaml.gz").is_file()).collect();
    cases.sort();
    if cases.is_empty() {
        println!("skipped: no cases in {}", folder.display());
    }
    cases
}

/// A case as a scenario folder: the same files, its input unpacked.
fn unpack(case: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(case)?.flatten() {
        let name = entry.file_name();
        match name.to_string_lossy().strip_suffix(".gz") {
            Some(plain) => {
                let packed = std::fs::File::open(entry.path())?;
                let unpacked = std::fs::File::create(to.join(plain))?;
                let mut gzip = Command::new("gzip");
                let status = gzip.arg("-dc").stdin(packed).stdout(unpacked).stderr(Stdio::inherit());
                assert!(status.status()?.success(), "gzip unpacks {}", entry.path().display());
            }
            None => drop(std::fs::copy(entry.path(), to.join(&name))?),
        }
    }
    Ok(())
}

/// A proxy and what it asks for, type by type.
struct Case {
    proxy: Proxy,
    snapshot: Arc<FactsSnapshot>,
    wanted: Vec<(&'static str, TypeUrl, Watched)>,
}

/// The stages whose work a type is.
fn makers(short: &str) -> &'static [&'static str] {
    match short {
        "cds" => &["clusters"],
        "eds" => &["endpoints"],
        "rds" => &["routes"],
        "lds" => &["listeners", "security"],
        _ => &["dns"],
    }
}

fn load(options: &Options, stages: &[Arc<dyn trysail_stages::guest::Guest>], folder: &Path) -> Option<Case> {
    let loaded = trysail_discovery::load_folder(folder, &trysail_discovery::Config::scenario()).ok()?;
    let scripted = render::proxies(loaded.settings.proxies.as_deref()?).ok()?;
    let scripted = scripted.into_iter().next()?;
    let proxy = scripted.proxy.clone().ok()?;
    let snapshot = Arc::new(FactsSnapshot::new(render::inputs(&loaded)));
    let engine = pipeline::engine(options, stages.to_vec(), snapshot.clone());
    let all = render::views(&engine, &scripted, &proxy);
    let mut wanted = Vec::new();
    for (short, view) in &all.views {
        let type_url = type_urls::PUSH_ORDER.into_iter().find(|url| type_urls::short(url) == Some(*short))?;
        let names: BTreeSet<_> = view.resources.iter().map(|resource| resource.name.clone()).collect();
        let bytes: usize = view.resources.iter().map(|resource| resource.body.len()).sum();
        println!("{short}: {} resources, {bytes} bytes", view.resources.len());
        let watched = if matches!(*short, "eds" | "rds") { Watched::Names(Arc::new(names)) } else { Watched::Wildcard };
        wanted.push((*short, TypeUrl::from(type_url), watched));
    }
    Some(Case { proxy, snapshot, wanted })
}

fn generators(c: &mut Criterion) {
    let options = Options { mode: Mode::Sandboxed, audit_share: 0.0, ..Options::default() };
    let stages = pipeline::stages(&options).expect("the stages load");
    let scratch = std::env::temp_dir().join(format!("trysail-generator-{}", std::process::id()));
    for folder in cases() {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let unpacked = scratch.join(&name);
        unpack(&folder, &unpacked).expect("a case can be unpacked");
        println!("{name}");
        let Some(case) = load(&options, &stages, &unpacked) else {
            println!("{name}: has no proxy that can be served");
            continue;
        };
        let mut group = c.benchmark_group("generate");
        group.sample_size(10).measurement_time(Duration::from_secs(2));
        for (short, type_url, watched) in &case.wanted {
            let fresh = || pipeline::engine(&options, stages.clone(), case.snapshot.clone());
            let serve = |engine: Arc<Engine>| (black_box(engine.resources(&case.proxy, type_url, watched)), engine);
            group.bench_function(BenchmarkId::new(format!("{short}/nothing"), &name), |b| {
                b.iter_batched(fresh, serve, BatchSize::PerIteration);
            });
            let prepared = fresh();
            let makers = makers(short);
            group.bench_function(BenchmarkId::new(format!("{short}/prepared"), &name), |b| {
                let forgetful = || {
                    prepared.forget(makers);
                    prepared.clone()
                };
                b.iter_batched(forgetful, serve, BatchSize::PerIteration);
            });
        }
        group.finish();
    }
    let _ = std::fs::remove_dir_all(&scratch);
}

fn main() {
    let run = || {
        let mut c = Criterion::default().configure_from_args();
        generators(&mut c);
        c.final_summary();
    };
    let thread = std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn(run);
    thread.expect("a thread starts").join().expect("no bench panics");
}
