//! From what moved in each kind to updates of the whole. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use trysail_discovery::shared::overlay;
use trysail_discovery::{Settings, Status, Update};
use trysail_model::{Object, ObjectRef, Rejection};

use crate::known::{Moved, Setting, What};

/// What a watch has to say.
#[derive(Debug)]
pub(crate) enum Told {
    /// It has listed everything, again or for the first time; this is what moved.
    Listed(Vec<Moved>),
    /// One object moved.
    Moved(Moved),
    /// The server does not know the kind (any more); this is what is gone.
    Undefined(Vec<Moved>),
    /// The server cannot be asked; what is known stays.
    Failing(String),
    /// It can be asked again.
    Fine,
}

/// Collects what the watches say.
pub(crate) struct Gatherer {
    /// Names of the kinds, and how their watches are doing.
    kinds: Vec<Watching>,
    /// ConfigMap with the mesh configuration, and the one that lies under it.
    own_map: ObjectRef,
    shared_map: Option<ObjectRef>,
    settings: BTreeMap<ObjectRef, [Setting; 2]>,
    refusals: BTreeMap<ObjectRef, Vec<Rejection>>,
    pending: BTreeMap<ObjectRef, Pending>,
    settings_moved: bool,
    is_initial: bool,
    status: Arc<Status>,
    served: Settings,
}

struct Watching {
    name: &'static str,
    has_listed: bool,
    is_defined: bool,
    n_objects: usize,
    failing: Option<String>,
}

struct Pending {
    /// Was it in force when the owner last heard?
    was_there: bool,
    object: Option<Arc<Object>>,
}

impl Gatherer {
    pub(crate) fn new(kinds: impl Iterator<Item = &'static str>, config: &trysail_discovery::Config) -> Gatherer {
        let map = |name: &str| ObjectRef::new("ConfigMap", &config.system_namespace, name);
        let watching = |name| Watching { name, has_listed: false, is_defined: true, n_objects: 0, failing: None };
        Gatherer {
            kinds: kinds.map(watching).collect(),
            own_map: map(&config.mesh_config_map()),
            shared_map: config.shared_mesh_config.as_deref().map(map),
            settings: BTreeMap::new(),
            refusals: BTreeMap::new(),
            pending: BTreeMap::new(),
            settings_moved: false,
            is_initial: true,
            status: Arc::default(),
            served: Settings::default(),
        }
    }

    /// Hears the watch of a kind out.
    pub(crate) fn hear(&mut self, kind: usize, told: Told) {
        let Some(watching) = self.kinds.get_mut(kind) else { return };
        match told {
            Told::Failing(why) => watching.failing = Some(why),
            Told::Fine => watching.failing = None,
            Told::Listed(moved) => {
                (watching.has_listed, watching.is_defined, watching.failing) = (true, true, None);
                moved.into_iter().for_each(|moved| self.take(kind, moved));
            }
            Told::Undefined(moved) => {
                (watching.has_listed, watching.is_defined, watching.failing) = (true, false, None);
                moved.into_iter().for_each(|moved| self.take(kind, moved));
            }
            Told::Moved(moved) => self.take(kind, moved),
        }
    }

    fn take(&mut self, kind: usize, moved: Moved) {
        let Moved { reference, what, refusals, mesh, networks } = moved;
        for (at, setting) in [mesh, networks].into_iter().enumerate() {
            if let Some(setting) = setting {
                self.settings.entry(reference.clone()).or_default()[at] = setting;
                self.settings_moved = true;
            }
        }
        if refusals.is_empty() {
            self.refusals.remove(&reference);
        } else {
            self.refusals.insert(reference.clone(), refusals);
        }
        let (n, was_there, object) = match what {
            What::Added(object) => (1, false, Some(object)),
            What::Updated(object) => (0, true, Some(object)),
            What::Deleted => (-1, true, None),
            What::Kept => return,
        };
        if let Some(watching) = self.kinds.get_mut(kind) {
            watching.n_objects = watching.n_objects.saturating_add_signed(n);
        }
        self.pending.entry(reference).or_insert(Pending { was_there, object: None }).object = object;
    }

    /// The kinds that have not listed yet, with what is wrong.
    pub(crate) fn waiting(&self) -> Vec<String> {
        let missing = self.kinds.iter().filter(|kind| !kind.has_listed);
        missing
            .map(|kind| match &kind.failing {
                Some(why) => format!("{}: {why}", kind.name),
                None => kind.name.to_owned(),
            })
            .collect()
    }

    /// What the owner has to hear now, if anything.
    pub(crate) fn flush(&mut self) -> Option<Update> {
        if self.kinds.iter().any(|kind| !kind.has_listed) {
            return None;
        }
        let status = self.status();
        if !self.is_initial && self.pending.is_empty() && !self.settings_moved && status == *self.status {
            return None;
        }
        let before = std::mem::replace(&mut self.status, Arc::new(status));
        let settings = self.settings();
        let mut update = Update {
            initial: std::mem::take(&mut self.is_initial),
            settings_moved: settings != self.served,
            settings: settings.clone(),
            status: self.status.clone(),
            reported: missing_in(&before, &self.status),
            resolved: missing_in(&self.status, &before),
            ..Update::default()
        };
        self.settings_moved = false;
        self.served = settings;
        for (reference, Pending { was_there, object }) in std::mem::take(&mut self.pending) {
            match object {
                Some(object) if was_there => update.updated.push(object),
                Some(object) => update.added.push(object),
                None if was_there => update.deleted.push(reference),
                // It came and went while nobody looked.
                None => {}
            }
        }
        Some(update)
    }

    fn settings(&self) -> Settings {
        let of = |map: &ObjectRef, at: usize| self.settings.get(map).and_then(|settings| settings[at].clone());
        let shared = self.shared_map.as_ref().and_then(|map| of(map, 0));
        let mesh = match (shared, of(&self.own_map, 0)) {
            (Some(shared), Some(own)) => Some(Arc::new(overlay(&shared, &own))),
            (shared, own) => own.or(shared),
        };
        Settings { mesh, networks: of(&self.own_map, 1), ..Settings::default() }
    }

    fn status(&self) -> Status {
        let mut rejections: Vec<Rejection> = self.refusals.values().flatten().cloned().collect();
        rejections.sort();
        let kinds = self.kinds.iter().filter(|kind| kind.n_objects > 0);
        let mut failing: Vec<String> =
            self.kinds.iter().filter_map(|kind| Some(format!("{}: {}", kind.name, kind.failing.as_ref()?))).collect();
        failing.sort();
        let (n_failing, n_kinds) = (failing.len(), self.kinds.len());
        let unreadable = failing
            .first()
            .map(|first| format!("{n_failing} of {n_kinds} watches fail ({first}); the last state stays in force"));
        Status {
            kinds: kinds.map(|kind| (kind.name.to_owned(), kind.n_objects)).collect(),
            rejections,
            unreadable,
            ..Status::default()
        }
    }
}

fn missing_in(from: &Status, of: &Status) -> Vec<Rejection> {
    of.rejections.iter().filter(|rejection| from.rejections.binary_search(rejection).is_err()).cloned().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::known::Known;
    use crate::read::tests::raw;

    fn gatherer() -> Gatherer {
        let config = trysail_discovery::Config {
            system_namespace: "n".into(),
            shared_mesh_config: Some("shared".into()),
            ..Default::default()
        };
        Gatherer::new(["VirtualService", "ConfigMap"].into_iter(), &config)
    }

    fn host(name: &str, version: u64, host: &str) -> crate::read::Read {
        raw("VirtualService", name, "u", version, json!({"spec": {"hosts": [host]}}))
    }

    #[test]
    fn nothing_is_told_before_everything_has_listed() {
        let (mut all, mut known) = (gatherer(), Known::default());
        all.hear(0, Told::Listed(known.list(vec![host("a", 1, "a")]).unwrap()));
        assert!(all.flush().is_none());
        assert_eq!(all.waiting(), ["ConfigMap"]);
        all.hear(1, Told::Failing("no route".into()));
        assert_eq!(all.waiting(), ["ConfigMap: no route"]);
        all.hear(1, Told::Listed(Vec::new()));
        let first = all.flush().unwrap();
        assert!(first.initial && first.added.len() == 1);
        assert!(all.flush().is_none(), "nothing happened");
    }

    #[test]
    fn events_between_two_looks_are_one() {
        let (mut all, mut known) = (gatherer(), Known::default());
        all.hear(0, Told::Listed(known.list(vec![host("a", 1, "a")]).unwrap()));
        all.hear(1, Told::Undefined(Vec::new()));
        all.flush().unwrap();
        for moved in [known.apply(host("b", 2, "b")), known.apply(host("a", 3, "x")), known.apply(host("a", 4, "y"))] {
            all.hear(0, Told::Moved(moved.unwrap()));
        }
        let b = trysail_model::ObjectRef::new("VirtualService", "n", "b");
        all.hear(0, Told::Moved(known.delete(&b, trysail_model::Fingerprint::of(b"u")).unwrap()));
        let update = all.flush().unwrap();
        assert!(update.added.is_empty() && update.deleted.is_empty());
        assert_eq!(update.updated[0].spec()["hosts"][0], "y");
        all.hear(0, Told::Failing("gone".into()));
        let update = all.flush().unwrap();
        assert!(
            update.updated.is_empty() && update.status.unreadable.as_ref().unwrap().contains("VirtualService: gone")
        );
        all.hear(0, Told::Fine);
        assert_eq!(all.flush().unwrap().status.unreadable, None);
        // A list that has nothing new says that all is well, too.
        all.hear(0, Told::Failing("expired".into()));
        assert!(all.flush().unwrap().status.unreadable.is_some());
        all.hear(0, Told::Listed(Vec::new()));
        assert_eq!(all.flush().unwrap().status.unreadable, None);
    }

    #[test]
    fn the_own_configuration_lies_over_the_shared_one() {
        let mut all = gatherer();
        let setting = |map: &str, mesh: Option<serde_json::Value>| {
            let reference = ObjectRef::new("ConfigMap", "n", map);
            let mesh = Some(mesh.map(Arc::new));
            Told::Moved(Moved { reference, what: What::Kept, refusals: Vec::new(), mesh, networks: None })
        };
        all.hear(0, Told::Listed(Vec::new()));
        all.hear(1, setting("shared", Some(json!({"rootNamespace": "r", "trustDomain": "s"}))));
        all.hear(1, setting("istio", Some(json!({"trustDomain": "o"}))));
        all.hear(1, Told::Listed(Vec::new()));
        assert_eq!(*all.flush().unwrap().settings.mesh.unwrap(), json!({"rootNamespace": "r", "trustDomain": "o"}));
        all.hear(1, setting("istio", None));
        let update = all.flush().unwrap();
        assert!(update.settings_moved);
        assert_eq!(update.settings.mesh.unwrap()["trustDomain"], "s");
    }
}
