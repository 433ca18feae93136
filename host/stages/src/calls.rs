//! Calls: what is computed, apart from for whom.

use std::collections::BTreeSet;
use std::sync::Arc;

use trysail_model::ResourceName;

/// An interned call.
pub type CallId = u32;

/// What is called. No proxy is among the arguments: what a call needs to know of it, it must ask, so that it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// A function of a stage.
    Stage {
        /// The stage.
        stage: Arc<str>,
        /// Its function.
        function: Arc<str>,
        /// Arguments.
        args: Arc<[String]>,
    },
    /// A call's output after the plugins at a hook point; without a call, what they insert there.
    Hook {
        /// The hook point.
        point: Arc<str>,
        /// The arguments that plugins see.
        args: Arc<[String]>,
        /// The call whose output they transform.
        inner: Option<CallId>,
    },
    /// One plugin at a hook point, working on a call's output.
    Plugin {
        /// Name and digest of the plugin: a new version is another call.
        plugin: Arc<str>,
        /// The hook point.
        point: Arc<str>,
        /// The arguments.
        args: Arc<[String]>,
        /// The fragment before it.
        inner: Option<CallId>,
    },
    /// The resources of these names, each made by a function of a stage. Made by the host: the plan of a subscription.
    Names {
        /// The stage.
        stage: Arc<str>,
        /// Its function; the name is its argument.
        function: Arc<str>,
        /// Hook point of the function, or empty.
        hook: Arc<str>,
        /// The names.
        names: Arc<BTreeSet<ResourceName>>,
    },
}

impl Call {
    /// A function of a stage.
    pub fn stage(stage: &str, function: &str, args: &[&str]) -> Call {
        Call::Stage {
            stage: stage.into(),
            function: function.into(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
        }
    }

    /// Stage or plugin that does the work, when a guest does.
    pub fn guest(&self) -> Option<&str> {
        match self {
            Call::Stage { stage, .. } => Some(stage),
            Call::Plugin { plugin, .. } => Some(plugin),
            Call::Hook { .. } | Call::Names { .. } => None,
        }
    }
}

/// The name of a plugin for people, of its id `NAME@DIGEST...`.
pub(crate) fn plugin_name(id: &str) -> &str {
    id.split('@').next().unwrap_or(id)
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Call::Stage { stage, function, args } => write!(f, "{stage}/{function}({})", args.join(", ")),
            Call::Hook { point, args, .. } => write!(f, "hook {point}({})", args.join(", ")),
            Call::Plugin { plugin, point, args, .. } => {
                write!(f, "plugin {} at {point}({})", plugin_name(plugin), args.join(", "))
            }
            Call::Names { stage, function, names, .. } => write!(f, "{stage}/{function} of {} names", names.len()),
        }
    }
}
