//! What a component costs: by fragment, and in a mesh of services.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;
use trysail_model::Proxy;

use super::On;
use super::rehearsal::Rehearsal;
use crate::render;

pub(super) fn bench(component: &Path, n_services: usize, spec: Value) -> Result<()> {
    let folder = tempfile::tempdir().context("cannot make a folder for the mesh")?;
    std::fs::write(folder.path().join("mesh.yaml"), mesh(n_services)).context("cannot write the mesh")?;
    let rehearsal = Rehearsal::with_spec(component, folder.path(), &On::default(), spec)?;
    let (plain, _) = timed(&rehearsal, false)?;
    let (with, engine) = timed(&rehearsal, true)?;
    println!("a mesh of {n_services} services, everything for one sidecar: {plain:.1?} without it, {with:.1?} with it");
    let name = component.file_stem().and_then(|stem| stem.to_str()).unwrap_or("plugin");
    let did = engine.counters().of_guest(&format!("istio-system/{name}"));
    if did.runs == 0 {
        println!("it was not called");
        return Ok(());
    }
    let each = Duration::from_secs_f64(did.seconds / did.runs as f64);
    println!(
        "calls: {} ({} changed something, {} faults), {each:.1?} each, with what it asked",
        did.runs, did.effective, did.faults
    );
    println!(
        "{} bytes made, {} fragments remembered: the same for all proxies whose answers agree",
        did.output_bytes,
        engine.plugin_effects().values().map(|of| of.fragments).sum::<usize>()
    );
    let before = engine.counters().runs.load(Ordering::Relaxed);
    let again = Instant::now();
    everything(&engine, rehearsal.proxies());
    println!(
        "asked again with nothing changed: {:.1?}, {} calls run",
        again.elapsed(),
        engine.counters().runs.load(Ordering::Relaxed) - before
    );
    Ok(())
}

fn timed(rehearsal: &Rehearsal, with_plugins: bool) -> Result<(Duration, std::sync::Arc<trysail_stages::Engine>)> {
    let engine = if with_plugins { rehearsal.prepared()?.0 } else { rehearsal.plain()? };
    let began = Instant::now();
    everything(&engine, rehearsal.proxies());
    Ok((began.elapsed(), engine))
}

fn everything(engine: &std::sync::Arc<trysail_stages::Engine>, proxies: &[Proxy]) {
    for proxy in proxies {
        render::views(engine, &render::Scripted::plain(proxy.clone()), proxy);
    }
}

/// Services with an endpoint each, and one pod with a sidecar.
fn mesh(n_services: usize) -> String {
    let mut text = String::from(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: client-1, namespace: bench, labels: {app: client}}\n\
         spec: {serviceAccountName: client, containers: [{name: client}]}\n\
         status: {phase: Running, podIP: 10.250.0.1, podIPs: [{ip: 10.250.0.1}], conditions: [{type: Ready, status: 'True'}]}\n",
    );
    for number in 0..n_services {
        let (high, low) = (number / 250, number % 250 + 1);
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: bench}}\n\
             spec: {{clusterIP: 10.{}.{}.{low}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: s{number}-1, namespace: bench, labels: {{kubernetes.io/service-name: s{number}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8080, protocol: TCP}}]\n\
             endpoints: [{{addresses: [10.{}.{}.{low}], conditions: {{ready: true}}}}]\n",
            high / 250,
            high % 250,
            100 + high / 250,
            high % 250,
        ));
    }
    text
}
