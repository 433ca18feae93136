//! Routes that lead nowhere: to a cluster that the proxy is not sent.
//!
//! Envoy takes them, and answers 503 to the requests that they match; istiod sends them too. So they are not held back, and are
//! said when somebody asks: `render`, and the debug page of a proxy. Looking through all routes of all proxies at each change
//! would cost more than the changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use trysail_codec::gate::{self, Target};
use trysail_model::View;
use trysail_model::ids::type_urls;
use trysail_sdk::{Diagnostic, Severity};

/// One diagnostic for each route of these views, of one proxy, whose cluster is not in the view of clusters.
pub fn diagnostics(views: &[(&'static str, Arc<View>)]) -> Vec<Diagnostic> {
    let of = |short| views.iter().find(|(found, _)| *found == short).map(|(_, view)| view);
    let Some(clusters) = of("cds") else { return Vec::new() };
    let mut found = Vec::new();
    for (short, type_url) in [("lds", type_urls::LISTENER), ("rds", type_urls::ROUTE)] {
        for resource in of(short).into_iter().flat_map(|view| &view.resources) {
            let mut known = BTreeSet::new();
            for reference in gate::inspect(type_url, &resource.body.to_bytes(), None).references {
                let leads_nowhere = reference.target == Target::Cluster && clusters.get(&reference.name).is_none();
                // One virtual host after the other may say it; the first place tells enough.
                if leads_nowhere && known.insert(reference.name.clone()) {
                    found.push(Diagnostic {
                        severity: Severity::Warning,
                        object: format!("{short} {}", resource.name),
                        field: reference.path,
                        message: format!("there is no cluster {}", reference.name),
                        code: String::new(),
                    });
                }
            }
        }
    }
    found
}
