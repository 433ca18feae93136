//! The proxy as far as this stage wants to know it: in which namespaces it is *not*.
//!
//! Almost everything here depends on the proxy's namespace, and almost always in the same way for almost all proxies.
//! So the namespace itself is asked only when the output names it (`./*`); otherwise the question is whether it is one
//! of the few namespaces that would make a difference. Proxies of all others then share one output.

use std::cell::{OnceCell, RefCell};

use trysail_sdk::Ctx;

/// The proxy, asked lazily, and never twice the same.
pub struct Client<'c> {
    ctx: &'c Ctx<'c>,
    namespace: OnceCell<String>,
    /// Sets of namespaces that the proxy's is not in.
    outside: RefCell<Vec<Vec<String>>>,
}

impl<'c> Client<'c> {
    /// A client about which nothing was asked yet.
    pub fn new(ctx: &'c Ctx<'c>) -> Self {
        Client { ctx, namespace: OnceCell::new(), outside: RefCell::default() }
    }

    /// The proxy's namespace: the last resort, since outputs are then shared within a namespace only.
    pub fn namespace(&self) -> &str {
        self.namespace.get_or_init(|| self.ctx.proxy("namespace").unwrap_or_default())
    }

    /// Which of the namespaces is the proxy's. Asks nothing when there is none to choose from or when earlier answers
    /// tell.
    pub fn among<'n>(&self, namespaces: impl IntoIterator<Item = &'n str>) -> Option<&str> {
        let mut namespaces: Vec<&str> = namespaces.into_iter().collect();
        // One form for one question, whatever order it came up in.
        namespaces.sort_unstable();
        namespaces.dedup();
        if self.namespace.get().is_none() {
            if self.outside.borrow().iter().any(|asked| *asked == namespaces) {
                return None;
            }
            let Some(own) = self.ctx.proxy_in_namespaces(&namespaces) else {
                self.outside.borrow_mut().push(namespaces.into_iter().map(str::to_owned).collect());
                return None;
            };
            return Some(self.namespace.get_or_init(|| own));
        }
        self.namespace.get().map(String::as_str).filter(|own| namespaces.binary_search(own).is_ok())
    }

    /// Does an object of namespace `home` with this effective `exportTo` show itself to the proxy?
    pub fn sees(&self, export_to: &[String], home: &str) -> bool {
        if export_to.iter().any(|to| to == "*") {
            return true;
        }
        let named = export_to.iter().map(String::as_str).filter(|to| *to != "~");
        self.among(named.map(|to| if to == "." { home } else { to })).is_some()
    }
}
