//! The snapshot itself.

use std::sync::Arc;

use trysail_model::{Affected, Answer, ObjectRef, Proxy, Query, Snapshot};

use crate::affected;
use crate::endpoints::View;
use crate::features::Environment;
use crate::inputs::{Base, Change, Inputs};
use crate::kept::Kept;
use crate::labels::Labels;
use crate::pods::Pod;
use crate::proxy;
use crate::state::State;
use crate::table::prefix;
use crate::unused::{self, Unused};

/// One immutable state of everything known. Cloning shares all of it.
#[derive(Clone, Debug)]
pub struct FactsSnapshot {
    revision: u64,
    base: Arc<Base>,
    state: Arc<State>,
}

impl FactsSnapshot {
    /// Reads everything anew; the first revision is 1.
    pub fn new(inputs: Inputs) -> FactsSnapshot {
        let Inputs { objects, mesh, networks, environment, settings } = inputs;
        let base = Base::new(settings, Environment::new(&environment), &mesh, &networks);
        base.warnings().for_each(|warning| tracing::warn!(warning, "configuration of the mesh"));
        let mut state = State::default();
        state.change(&base, objects.into_iter().map(Kept::new), &[]);
        FactsSnapshot { revision: 1, base: Arc::new(base), state: Arc::new(state) }
    }

    /// Does the operator want a namespace with these labels read, and served, at all?
    pub fn discovers_namespace(&self, labels: &Labels) -> bool {
        self.base.mesh.discovers(labels)
    }

    /// Does a pod of a service account run on a node? One that has ended does not.
    pub fn runs_on_node(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let in_namespace = prefix(&[namespace]);
        let account = |pod: &Pod| if pod.account.is_empty() { "default" } else { &*pod.account } == service_account;
        let mut pods = self.state.pods.with_prefix(&in_namespace).map(|(_, pod)| pod);
        pods.any(|pod| pod.node == node && !pod.ended && account(pod))
    }

    /// Why no service of the cluster is for a proxy's workload, in istiod's words; `None` when one is.
    pub fn lacks_targets(&self, proxy: &Proxy) -> Option<&'static str> {
        self.view().lacks_targets(proxy)
    }

    /// Are the objects of this namespace read at all?
    pub fn reads_namespace(&self, name: &str) -> bool {
        self.state.discovers(&self.base, name)
    }

    /// The snapshot after a change, and the queries whose answers can have moved.
    ///
    /// A change of objects costs what the objects touch, not what the mesh holds; a change of mesh configuration or
    /// networks reads everything anew.
    pub fn apply(&self, change: &Change) -> (FactsSnapshot, Vec<Affected>) {
        let revision = self.revision + 1;
        let mut affected = Vec::new();
        let (base, mut state) = self.rebased(change, &mut affected);
        let before = state.clone();
        let touched = state.change(&base, change.upserted.iter().cloned().map(Kept::new), &change.deleted);
        let (old, new) = (View { base: &base, state: &before }, View { base: &base, state: &state });
        affected.extend(affected::by_objects(&touched, old, new));
        (FactsSnapshot { revision, base, state: Arc::new(state) }, affected)
    }

    /// The base after a change, with the state that the objects so far have on it.
    fn rebased(&self, change: &Change, affected: &mut Vec<Affected>) -> (Arc<Base>, State) {
        if change.mesh.is_none() && change.networks.is_none() {
            return (self.base.clone(), (*self.state).clone());
        }
        let base = self.base.with(change.mesh.as_ref(), change.networks.as_ref());
        base.warnings().for_each(|warning| tracing::warn!(warning, "configuration of the mesh"));
        affected.extend(affected::by_base(&self.base, &base));
        let mut state = State::default();
        state.change(&base, self.state.objects.iter().map(|(_, kept)| kept.clone()), &[]);
        (Arc::new(base), state)
    }

    /// What the snapshot stands on.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Is there an object of that name?
    pub fn has(&self, reference: &ObjectRef) -> bool {
        self.state.objects.contains(&crate::state::object_key(reference))
    }

    /// What nothing takes up.
    pub fn unused(&self) -> Vec<Unused> {
        unused::all(self)
    }

    /// Number of objects given.
    pub fn n_objects(&self) -> usize {
        self.state.objects.len()
    }

    /// The pod whose labels and place a proxy has, for `explain`; none where they are those that it sent itself.
    fn behind_proxy(&self, proxy: &Proxy) -> Arc<[ObjectRef]> {
        self.view().pod_of_proxy(proxy).map(|pod| pod.reference.clone()).into_iter().collect()
    }

    pub(crate) fn view(&self) -> View<'_> {
        View { base: &self.base, state: &self.state }
    }
}

/// Is the attribute of a proxy one that its pod may decide?
fn is_from_workload(attribute: &str) -> bool {
    ["labels", "locality"].contains(&attribute) || attribute.starts_with("label:")
}

impl Snapshot for FactsSnapshot {
    fn revision(&self) -> u64 {
        self.revision
    }

    fn answer(&self, query: &Query) -> Answer {
        self.view().answer(query)
    }

    fn answer_about(&self, proxy: &Proxy, query: &Query) -> Answer {
        let answer = proxy::answer(proxy, query);
        match query.kind {
            // `refresh` put the bytes into the proxy; what stands behind them is for `explain`.
            "proxy-targets" => {
                let objects: Vec<ObjectRef> = self.view().behind_targets(proxy).into_iter().collect();
                Answer { objects: objects.into(), ..answer }
            }
            "proxy-labels-match" => Answer { objects: self.behind_proxy(proxy), ..answer },
            "proxy" if is_from_workload(query.arg(0)) => Answer { objects: self.behind_proxy(proxy), ..answer },
            _ => answer,
        }
    }

    fn refresh(&self, proxy: &Proxy) -> Option<Proxy> {
        self.view().refresh(proxy)
    }

    fn without(&self, object: &ObjectRef) -> Arc<dyn Snapshot> {
        Arc::new(self.apply(&Change { deleted: vec![object.clone()], ..Change::default() }).0)
    }
}
