//! The ten first uses of EnvoyFilter, as plugins without code, by traffic through real Envoys: each comes, does its work, and goes.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::net::Ipv4Addr;

use trysail::plugin::{On, Rehearsal};
use trysail_tests::kube::PodSpec;
use trysail_tests::mesh::{Config, Mesh, PATIENCE};
use trysail_tests::{aloud, envoy, eventually, netns, workspace};

#[allow(dead_code, reason = "another suite uses the rest of it")]
#[path = "support/folder.rs"]
mod folder;

use folder::Folder;

/// The service whose proxies have the plugins.
const HOST: &str = "backend";
/// More calls than two proxies let through in a minute.
const BURST: usize = 40;

/// What tells that a plugin is at work: by traffic, or, where traffic goes on as before, by what Envoy says that it has.
enum Sign {
    /// Some of a burst are answered so.
    Status(u16),
    /// An answer has this header.
    Header(&'static str, &'static str),
    /// Envoy's configuration has this text.
    Configured(&'static str),
    /// Envoy's log has a line with this text.
    Logged(&'static str),
}

const USES: [(&str, Sign); 10] = [
    ("01-local-rate-limit", Sign::Status(429)),
    ("02-global-rate-limit", Sign::Configured("rate-limits")),
    ("03-lua", Sign::Header("x-answered-by", "backend")),
    ("04-connection-manager", Sign::Configured("\"xff_num_trusted_hops\":2")),
    ("05-buffers", Sign::Configured("\"per_connection_buffer_limit_bytes\":32768")),
    ("06-compression", Sign::Configured("min_content_length")),
    // Nobody says whether anybody may pass, so nobody does.
    ("07-external-authorization", Sign::Status(503)),
    ("08-external-processing", Sign::Configured("message_timeout")),
    ("09-header-case", Sign::Configured("header_key_format")),
    ("10-access-log", Sign::Logged("GET /logged-by-10 200")),
];

async fn shows(mesh: &Mesh, sign: &Sign) -> anyhow::Result<bool> {
    match sign {
        Sign::Status(status) => {
            for _ in 0..BURST {
                if mesh.get("client", HOST, "/", &[]).await?.status == *status {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Sign::Header(name, value) => {
            let reply = mesh.get("client", HOST, "/", &[]).await?;
            Ok(reply.headers.get(*name).is_some_and(|found| found == value))
        }
        Sign::Configured(text) => {
            anyhow::ensure!(mesh.get("client", HOST, "/", &[]).await?.status == 200, "traffic goes on");
            Ok(mesh.pod("backend-v1").admin().config_dump().await?.to_string().contains(text))
        }
        Sign::Logged(text) => {
            for _ in 0..4 {
                mesh.get("client", HOST, "/logged-by-10", &[]).await?;
            }
            Ok(["backend-v1", "backend-v2"].iter().any(|pod| mesh.pod(pod).log().contains(text)))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_use_comes_works_and_goes() {
    let Some(interception) = netns::or_skip("each_use_comes_works_and_goes") else { return };
    let folder = Folder::copy(&workspace().join("examples/frontend-backend"));
    let config = Config {
        outside: vec![PodSpec::outside("client", Ipv4Addr::new(10, 244, 0, 10))],
        ..Config::new(folder.path().to_owned(), interception)
    };
    let mesh = Mesh::start(config).await.unwrap();
    mesh.until("client", HOST, "an answer", |reply| reply.status == 200).await.unwrap();
    for (name, sign) in &USES {
        let plugin =
            std::fs::read_to_string(workspace().join("examples/plugins").join(name).join("plugin.yaml")).unwrap();
        assert!(!matches!(sign, Sign::Configured(_)) || !shows(&mesh, sign).await.unwrap(), "{name}: not before");
        folder.write("plugin.yaml", &plugin);
        let works = || async {
            anyhow::ensure!(shows(&mesh, sign).await?, "{name} does not show");
            Ok(())
        };
        let worked = eventually(name, PATIENCE, works).await;
        worked.unwrap_or_else(|error| panic!("{error:#}\n{}", mesh.control_plane().lines().join("\n")));
        std::fs::remove_file(folder.path().join("plugin.yaml")).unwrap();
        // What was logged stays so.
        if !matches!(sign, Sign::Logged(_)) {
            let gone = || async {
                anyhow::ensure!(!shows(&mesh, sign).await?, "{name} still shows");
                Ok(())
            };
            eventually(name, PATIENCE, gone).await.unwrap();
        }
        mesh.until("client", HOST, "an answer", |reply| reply.status == 200).await.unwrap();
    }
    let rejections = mesh.rejections().await.unwrap();
    assert!(rejections.is_empty(), "{rejections:#?}\n{}", mesh.control_plane().lines().join("\n"));
}

/// What `trysail plugin diff --envoy` says of a plugin on the example mesh: proxies, and Envoy's words.
fn refused(plugin: &str) -> Vec<(String, String)> {
    let folder = Folder::copy(&workspace().join("examples/frontend-backend"));
    folder.write("plugin.yaml", plugin);
    let envoy = envoy::find(aloud).unwrap();
    let validate = move || Rehearsal::of_folder(folder.path(), None, &On::default()).unwrap().validate(&envoy).unwrap();
    // Calls nest, each on its guest's stack.
    std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn(validate).unwrap().join().unwrap()
}

#[test]
fn envoy_is_asked_before_anything_is_sent() {
    let plugin = |name: &str| {
        std::fs::read_to_string(workspace().join("examples/plugins").join(name).join("plugin.yaml")).unwrap()
    };
    let lua = plugin("03-lua");
    assert_eq!(refused(&lua), []);
    assert_eq!(refused(&plugin("07-external-authorization")), []);
    // Only Envoy knows that this is no script.
    let broken = lua.replace("function envoy_on_response", "funktion envoy_on_response");
    assert_ne!(broken, lua);
    let refused = refused(&broken);
    let proxies: Vec<&str> = refused.iter().map(|(proxy, _)| proxy.as_str()).collect();
    assert_eq!(proxies, ["backend-v1.default", "backend-v2.default"]);
    assert!(refused.iter().all(|(_, words)| words.contains("script load error")), "{refused:?}");
}
