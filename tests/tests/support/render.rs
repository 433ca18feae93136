//! Renders scenarios in process, all of them with one set of loaded stages, as `trysail render --all` does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use trysail::pipeline::{self, Options};
use trysail::render;

/// How scenarios are compared with what istiod sends: the gate only reports, since istiod sends what it would hold back. Each
/// call is made twice and must answer the same, since tests are where impure stages should be found.
#[allow(dead_code, reason = "not every suite compares")]
pub fn as_istiod() -> Options {
    Options { hold_back: false, audit_share: 1.0, ..Options::default() }
}

/// Renders each scenario below `root` into the same path below `out`, with what was refused in `refused.txt`. Answers what failed, by scenario.
pub fn render_all(options: &Options, root: &Path, scenarios: &[PathBuf], out: &Path) -> Vec<String> {
    let loaded = pipeline::load(options).expect("the built-in stages load");
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let work = || {
        while let Some(scenario) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
            let rendered = render::scenario(options, &loaded, &root.join(scenario), None, &out.join(scenario), true);
            match rendered {
                Ok(rendered) if rendered.refused.is_empty() => {}
                Ok(rendered) => {
                    fs::write(out.join(scenario).join("refused.txt"), rendered.refused.join("\n") + "\n").unwrap()
                }
                Err(error) => failed.lock().unwrap().push(format!("{}: {error:#}", scenario.display())),
            }
        }
    };
    let n_workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..n_workers {
            // Calls nest, each on its guest's stack.
            std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn_scoped(scope, work).unwrap();
        }
    });
    failed.into_inner().unwrap()
}
