//! Hook points: which plugins work on a fragment for a proxy, in which order, and where each of them stands.

use std::sync::Arc;

use bytes::Bytes;
use trysail_model::Query;
use trysail_sdk::{Entry, Output};

use crate::calls::Call;
use crate::engine::{Engine, Hooked};
use crate::eval::{Cx, by_number};
use crate::queries::Question;
use crate::terms::Place;
use crate::trace::Read;

impl Engine {
    /// The output of a hook point: the last plugin's, each of which works on what the one before made. With it what decides
    /// which plugins these are.
    pub(crate) fn chain(
        self: &Arc<Self>,
        cx: &Cx,
        point: &Arc<str>,
        args: &Arc<[String]>,
        inner: Option<u32>,
    ) -> (Output, Vec<Read>) {
        let mut reads = vec![(self.queries.intern(&Question::Plugins(point.clone())), self.hooks_fingerprint(point))];
        let table = self.hooks.load();
        let plugins = table.get(point).map(Vec::as_slice).unwrap_or_default();
        let plugins: Vec<&Hooked> = plugins
            .iter()
            .filter(|hooked| {
                let Some(terms) = &hooked.terms else { return true };
                let place = self.place(hooked, point, args, inner);
                terms.admits(&place, &mut |kind, args| self.own_question(cx, kind, args, &mut reads))
            })
            .collect();
        let mut output = Output::empty();
        if inner.is_some() {
            let mut last = inner;
            for hooked in plugins {
                let call =
                    Call::Plugin { plugin: hooked.id.clone(), point: point.clone(), args: args.clone(), inner: last };
                last = Some(self.memos.of(call).id);
            }
            output.entries.extend(last.map(|id| Entry::Include(by_number(id))));
        } else {
            for hooked in plugins {
                let call =
                    Call::Plugin { plugin: hooked.id.clone(), point: point.clone(), args: args.clone(), inner: None };
                output.entries.push(Entry::Include(by_number(self.memos.of(call).id)));
            }
        }
        (output, reads)
    }

    /// Where a plugin stands.
    pub(crate) fn place(&self, hooked: &Hooked, point: &Arc<str>, args: &[String], inner: Option<u32>) -> Place {
        let mut function = None;
        let mut call = inner.map(|id| self.memos.get(id));
        while let Some(memo) = call {
            call = match &memo.call {
                Call::Stage { function: of, .. } => {
                    function = Some(of.clone());
                    None
                }
                Call::Hook { inner, .. } | Call::Plugin { inner, .. } => inner.map(|id| self.memos.get(id)),
                Call::Names { .. } => None,
            };
        }
        let mut target = crate::terms::target(point, function.as_deref(), args);
        // The one hook that stands at many points.
        if &*hooked.hook == "patch" {
            let kind = if point.ends_with("clusters") { "cluster" } else { &**point };
            target = target.with("kind", kind);
        }
        Place { hook: hooked.hook.clone(), point: point.clone(), target }
    }

    /// Asks a question of the host's own, about the mesh or the proxy.
    fn own_question(&self, cx: &Cx, kind: &'static str, args: Vec<String>, reads: &mut Vec<Read>) -> Option<Bytes> {
        let query = Query { kind, args };
        let about_proxy = self.decl(kind).is_some_and(|decl| decl.about_proxy);
        let question = if about_proxy { Question::Proxy(query.clone()) } else { Question::Mesh(query.clone()) };
        let id = self.queries.intern(&question);
        let (fingerprint, value) = if about_proxy {
            let answer = cx.proxy.answer(&*cx.epoch.snapshot, id, &query);
            (answer.fingerprint, answer.value.clone())
        } else {
            let answer = self.mesh_answer(&cx.epoch, &self.queries.cell(id), &query);
            (answer.fingerprint, answer.value.clone())
        };
        reads.push((id, fingerprint));
        value
    }
}
