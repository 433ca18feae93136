//! Where EnvoyFilters come in: who makes clusters, listeners or routes asks once, for all of them, and leads through the stage
//! `envoyfilter` what patches can touch. Everything else, and everything where no EnvoyFilter is, stays as it is and shared.

use crate::facts::{PatchScope, Strings};
use crate::{CallRef, Ctx, Failure, Item, Message, Output};

/// The stage that patches.
pub const STAGE: &str = "envoyfilter";

/// Hook point of route configurations, wherever a stage hands one out.
pub const ROUTE_CONFIGURATIONS: &str = "route-configuration";

/// What is patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Patched {
    /// Clusters.
    Clusters,
    /// Listeners with everything in them but routes.
    Listeners,
    /// Route configurations, also those within inbound listeners.
    Routes,
}

impl Patched {
    /// All of them.
    pub const ALL: [Patched; 3] = [Patched::Clusters, Patched::Listeners, Patched::Routes];

    /// As an argument, and the function that patches.
    pub fn text(self) -> &'static str {
        match self {
            Patched::Clusters => "clusters",
            Patched::Listeners => "listeners",
            Patched::Routes => "routes",
        }
    }

    /// The function that adds whole ones.
    pub fn added(self) -> &'static str {
        match self {
            Patched::Clusters => "added-clusters",
            Patched::Listeners => "added-listeners",
            Patched::Routes => "",
        }
    }

    /// From an argument.
    pub fn parse(text: &str) -> Option<Self> {
        Patched::ALL.into_iter().find(|patched| patched.text() == text)
    }
}

/// The context of a patch: which side of which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Context {
    /// Towards a sidecar's workload.
    Inbound,
    /// From a sidecar's workload.
    Outbound,
    /// A gateway.
    Gateway,
}

impl Context {
    /// As EnvoyFilter spells it.
    pub fn text(self) -> &'static str {
        match self {
            Context::Inbound => "SIDECAR_INBOUND",
            Context::Outbound => "SIDECAR_OUTBOUND",
            Context::Gateway => "GATEWAY",
        }
    }

    /// From an argument.
    pub fn parse(text: &str) -> Option<Self> {
        [Context::Inbound, Context::Outbound, Context::Gateway].into_iter().find(|context| context.text() == text)
    }

    /// The contexts that a proxy of a type has.
    pub fn of_proxy(kind: Option<&str>) -> &'static [Context] {
        match kind {
            Some("sidecar") => &[Context::Outbound, Context::Inbound],
            Some("router") => &[Context::Gateway],
            _ => &[],
        }
    }
}

/// The patches of one kind and context that a proxy has, as far as one must know to stay clear of them.
#[derive(Clone, Debug)]
pub struct Patching {
    patched: Patched,
    context: Context,
    scope: PatchScope,
}

impl Patching {
    /// Asks; none where there is no patch at all.
    ///
    /// # Errors
    /// An undecodable answer.
    pub fn ask(ctx: &Ctx<'_>, patched: Patched, context: Context) -> Result<Option<Self>, Failure> {
        let scope = ctx.derived::<PatchScope>(STAGE, "scope", &[patched.text(), context.text()])?;
        Ok(scope.map(|scope| Patching { patched, context, scope }))
    }

    /// Asks for the context that an argument names; without one nothing is patched.
    ///
    /// # Errors
    /// An undecodable answer, no such context.
    pub fn of_arg(ctx: &Ctx<'_>, patched: Patched, args: &[String]) -> Result<Option<Self>, Failure> {
        let Some(context) = args.first() else { return Ok(None) };
        let context = Context::parse(context);
        let context = context.ok_or_else(|| Failure::BadArguments("no such context of patches".into()))?;
        Patching::ask(ctx, patched, context)
    }

    /// The context as the argument that [`Patching::of_arg`] reads.
    pub fn arg(patching: Option<&Self>) -> Option<&'static str> {
        patching.map(|patching| patching.context.text())
    }

    /// Could something of this name, or of this port, be patched? What has neither is always led through.
    pub fn covers(&self, name: &str, port: u32) -> bool {
        self.scope.all || self.scope.names.iter().any(|own| own == name) || self.scope.ports.contains(&port)
    }

    /// Could the clusters of a service be patched?
    pub fn covers_host(&self, host: &str) -> bool {
        self.scope.all || self.scope.hosts.iter().any(|own| own == host)
    }

    /// The call with patches applied to what it makes, after the plugins at its hook point.
    pub fn through(&self, subject: Subject) -> CallRef {
        let Subject { call, hosts } = subject;
        let hosts = &hosts.join(",");
        CallRef { field: call.field, ..CallRef::new(STAGE, self.patched.text(), args(self.context, hosts, call)) }
    }

    /// The call for whole ones that patches add.
    pub fn added(&self) -> Option<CallRef> {
        self.scope.adds.then(|| CallRef::new(STAGE, self.patched.added(), [self.context.text()]))
    }
}

/// What [`Patching::through`] made of a call, taken apart again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Through {
    /// The context.
    pub context: Context,
    /// Hosts of the services, if they are inbound clusters.
    pub hosts: Vec<String>,
    /// The call whose items are patched.
    pub call: CallRef,
}

impl Through {
    /// From the arguments.
    pub fn parse(args: &[String]) -> Option<Self> {
        let [context, hosts, hook, stage, function, args @ ..] = args else { return None };
        let hosts = hosts.split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect();
        let call = CallRef::new(stage, function, args.to_vec()).hooked(hook);
        Some(Through { context: Context::parse(context)?, hosts, call })
    }
}

/// A call that patches can touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The call, with its hook point.
    pub call: CallRef,
    /// Hosts of the services that inbound clusters are of.
    pub hosts: Vec<String>,
}

impl Subject {
    /// A call.
    pub fn new(call: CallRef) -> Self {
        Subject { call, hosts: Vec::new() }
    }

    /// The output that names subjects: one item each, with what [`Through::parse`] reads.
    pub fn list(context: Context, subjects: impl IntoIterator<Item = Subject>) -> Output {
        let mut output = Output::empty();
        for (i, subject) in subjects.into_iter().enumerate() {
            let values = args(context, &subject.hosts.join(","), subject.call);
            output.item(Item::new(i.to_string(), Message::of(&Strings { values })));
        }
        output
    }
}

fn args(context: Context, hosts: &str, call: CallRef) -> Vec<String> {
    let head = [context.text().to_owned(), hosts.to_owned(), call.hook, call.stage, call.function];
    head.into_iter().chain(call.args).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_led_through_and_back() {
        let scope = PatchScope { ports: vec![80], adds: true, ..Default::default() };
        let patching = Patching { patched: Patched::Clusters, context: Context::Inbound, scope };
        let mut call = CallRef::new("clusters", "service", ["ns/a", "80,81"]).hooked("clusters");
        call.field = 7;
        let hosts = vec!["a".to_owned(), "b".to_owned()];
        let through = patching.through(Subject { call: call.clone(), hosts: hosts.clone() });
        assert_eq!((through.stage.as_str(), through.function.as_str(), through.field), (STAGE, "clusters", 7));
        call.field = 0;
        let parsed = Through::parse(&through.args).expect("arguments");
        assert_eq!(parsed, Through { context: Context::Inbound, hosts, call });
        assert_eq!(patching.added().expect("adds").function, "added-clusters");
        assert!(patching.covers("x", 80) && !patching.covers("x", 81) && !patching.covers_host("a"));
    }
}
