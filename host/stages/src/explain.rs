//! Where a resource, or a field of it, comes from.

use std::sync::Arc;

use trysail_model::{ObjectRef, Proxy, Resource, TypeUrl, Watched};

use crate::engine::Engine;
use crate::node::Node;
use crate::queries::Question;

/// A call behind a resource.
#[derive(Clone, Debug)]
pub struct Step {
    /// Nesting: calls put in place by, or asked for by, the step above with a smaller depth.
    pub depth: usize,
    /// The call.
    pub call: String,
    /// Stage or plugin, when a guest made it.
    pub by: Option<String>,
    /// What it asked, and the objects behind the answers.
    pub reads: Vec<(String, Vec<ObjectRef>)>,
    /// What it had to say.
    pub diagnostics: Vec<String>,
}

/// What is behind a resource.
#[derive(Clone, Debug, Default)]
pub struct Explanation {
    /// The calls, outermost first.
    pub steps: Vec<Step>,
    /// Every object that was read, sorted.
    pub objects: Vec<ObjectRef>,
    /// The objects whose removal changes the field asked about.
    pub made_by: Vec<ObjectRef>,
}

/// Reads the field asked about out of a resource; `None` when it is not there.
pub type Extract<'a> = dyn Fn(&Resource) -> Option<String> + 'a;

impl Engine {
    /// An engine of the same code at another state of the world, which remembers nothing.
    pub fn fork(&self, snapshot: Arc<dyn trysail_model::Snapshot>) -> Arc<Engine> {
        let guests: Vec<_> = self.guests.read().values().cloned().collect();
        let fork = Engine::new(self.config.clone(), guests, snapshot);
        fork.set_hooks((**self.hooks.load()).clone());
        fork
    }

    /// What one resource of a proxy is made of. `None` when the proxy has no such resource.
    ///
    /// With `field`, the resource is made again without each of the objects read: those that make a difference to the
    /// field made it.
    pub fn explain(
        self: &Arc<Self>,
        proxy: &Proxy,
        type_url: &TypeUrl,
        name: &str,
        field: Option<&Extract<'_>>,
    ) -> Option<Explanation> {
        let root = self.config.roots.iter().find(|root| root.type_url == type_url.as_str())?;
        let watched = if root.named { Watched::Names(Arc::new([name.into()].into())) } else { Watched::Wildcard };
        let resource = |engine: &Arc<Engine>| {
            let node = engine.resources(proxy, type_url, &watched).node?;
            let item = node.entries.find(name)?.clone();
            Some((node, item.resource))
        };
        let (node, found) = resource(self)?;
        let maker = Engine::maker(&node, name)?;
        let provenance = self.provenance_of(proxy, &maker);
        let mut explanation = Explanation { objects: provenance.objects, ..Explanation::default() };
        self.steps(proxy, &maker, 0, &mut explanation.steps);
        if let Some(extract) = field {
            let before = extract(&found);
            let snapshot = self.snapshot();
            for object in &explanation.objects {
                let fork = self.fork(snapshot.without(object));
                let after = resource(&fork).and_then(|(_, resource)| extract(&resource));
                if after != before {
                    explanation.made_by.push(object.clone());
                }
            }
        }
        Some(explanation)
    }

    /// The calls below a node, and the calls that they asked for.
    fn steps(self: &Arc<Self>, proxy: &Proxy, node: &Arc<Node>, depth: usize, steps: &mut Vec<Step>) {
        let _in_use = self.in_use.read_recursive();
        let cx = self.cx(proxy);
        let epoch = cx.epoch.clone();
        let mut reads = Vec::new();
        let mut below = Vec::new();
        for (id, _) in node.leaf.reads.iter() {
            let Some(cell) = self.queries.find(*id) else { continue };
            let objects = match &cell.question {
                Question::Mesh(query) => self.mesh_answer(&epoch, &cell, query).objects.to_vec(),
                Question::Proxy(query) => cx.proxy.answer(&*epoch.snapshot, *id, query).objects.to_vec(),
                other => {
                    below.extend(other.call());
                    Vec::new()
                }
            };
            reads.push((self.describe(*id), objects));
        }
        steps.push(Step {
            depth,
            call: node.memo.call.to_string(),
            by: node.memo.call.guest().map(str::to_owned),
            reads,
            diagnostics: node
                .leaf
                .diagnostics
                .iter()
                .map(|d| format!("{} {}: {}", d.object, d.field, d.message))
                .collect(),
        });
        for call in below {
            if let Ok(asked) = self.node_of(proxy, call) {
                self.steps(proxy, &asked, depth + 1, steps);
            }
        }
        for child in &node.children {
            self.steps(proxy, child, depth + 1, steps);
        }
    }
}
