//! Configuration from a folder: read, checked and defaulted as an API server would, and watched.
//!
//! It holds the kinds, their schemas and defaults, and the last good version of every object. It does not
//! know what the objects mean: no stage, no xDS, no mesh defaults. What other sources there are (a cluster) read
//! objects through it.
//!
//! ```text
//!  folder --scan--> files --parse--> documents --convert (schema, defaults)--> claims
//!         --Ledger--> objects in force, changes, status  -->  load_folder / FolderSource
//! ```
//!
//! **Invariant:** one bad document never takes another object with it, and never takes an object that was
//! good before out of force.

pub mod convert;
mod defaults;
mod folder;
pub mod kinds;
pub mod ledger;
pub mod parse;
mod scan;
pub mod schema;
pub mod shared;
mod status;
mod time;
mod update;
mod watch;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use trysail_model::Object;

pub use convert::{Claim, FileInput, Violation};
pub use folder::{Folder, LoadError, Settings, load_folder};
pub use ledger::{Changes, Ledger, Mode, Updated};
pub use status::{Status, Warning};
pub use update::Update;
pub use watch::{Change, FolderSource};

/// A further check of an object, such as those of Istio's validating webhook; what it finds refuses the object.
///
/// Settings come to it too, as kinds `MeshConfig`, `MeshNetworks`, `Environment` and `Proxies`, whose body is the
/// bare value.
pub type Check = Arc<dyn Fn(&Object) -> Vec<Violation> + Send + Sync>;

/// How a folder is read.
#[derive(Clone)]
pub struct Config {
    /// What happens to refused objects.
    pub mode: Mode,
    /// Kinds that a stage reads, as [`trysail_model::ObjectRef`] spells them; unset: all of them.
    pub read_kinds: Option<BTreeSet<String>>,
    /// Namespace of the control plane, where the ConfigMap with the mesh configuration is looked for.
    pub system_namespace: String,
    /// Revision of the control plane: the ConfigMap is `istio` for `default`, else `istio-<revision>`.
    pub revision: String,
    /// ConfigMap of the same namespace whose mesh configuration lies under the own one, `SHARED_MESH_CONFIG`.
    pub shared_mesh_config: Option<String>,
    /// Names of files and folders that are passed over wherever they are, such as `expected`.
    pub skip: BTreeSet<String>,
    /// Checks after those of the schema.
    pub checks: Vec<Check>,
    /// Largest file; a larger one is reported and not read.
    pub max_file_bytes: u64,
    /// When a change counts as finished.
    pub timing: Timing,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            mode: Mode::Strict,
            read_kinds: None,
            system_namespace: "istio-system".to_owned(),
            revision: "default".to_owned(),
            shared_mesh_config: None,
            skip: BTreeSet::new(),
            checks: Vec::new(),
            max_file_bytes: 64 << 20,
            timing: Timing::default(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("mode", &self.mode)
            .field("read_kinds", &self.read_kinds)
            .field("skip", &self.skip)
            .field("checks", &self.checks.len())
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// For a scenario folder with its expected outputs beside it: refused objects are taken all the same.
    pub fn scenario() -> Self {
        let skip = ["expected", "calls.yaml", "case.yaml"].map(str::to_owned);
        Config { mode: Mode::Lenient, skip: skip.into(), ..Config::default() }
    }

    /// True when a stage reads the kind.
    pub fn reads(&self, kind: &str) -> bool {
        self.read_kinds.as_ref().is_none_or(|kinds| kinds.contains(kind))
    }

    /// Name of the ConfigMap with the mesh configuration.
    pub fn mesh_config_map(&self) -> String {
        if self.revision.is_empty() || self.revision == "default" {
            "istio".to_owned()
        } else {
            format!("istio-{}", self.revision)
        }
    }
}

/// When a change in a watched folder counts as finished.
///
/// The defaults let a save be seen within 100 ms, and an editor's several steps as one.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The folder is read when nothing happened for so long.
    pub quiet: Duration,
    /// It is read after so long even if it never comes to rest.
    pub max_wait: Duration,
    /// A file that vanished may come back within this time: a save by rename.
    pub vanish_grace: Duration,
    /// A file that became empty or unreadable may be in the middle of a save for so long.
    pub cut_grace: Duration,
    /// A file that a writer still holds open is left alone for so long after its last write.
    pub open_grace: Duration,
    /// The folder is read without an event after so long, for what events do not tell.
    pub rescan: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            quiet: Duration::from_millis(12),
            max_wait: Duration::from_millis(60),
            vanish_grace: Duration::from_millis(40),
            cut_grace: Duration::from_millis(70),
            open_grace: Duration::from_secs(1),
            rescan: Duration::from_secs(5),
        }
    }
}
