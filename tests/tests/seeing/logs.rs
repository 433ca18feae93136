//! The log.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use trysail_tests::quiet;

use crate::mesh::objects;

#[test]
fn logs_have_levels_by_scope_and_forms() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    fs::create_dir(&config).unwrap();
    fs::write(config.join("objects.yaml"), objects()).unwrap();
    let log = folder.path().join("log.json");
    let run = |flags: &[&str], log: &PathBuf| -> Vec<String> {
        let mut command = std::process::Command::new(trysail_tests::control_plane::binary(quiet).unwrap());
        command.args(["discovery", "--registries=", "--native", "--ctrlz_port=0", "--configDir"]).arg(&config);
        for flag in ["--grpcAddr", "--httpAddr", "--monitoringAddr"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        command.args(["--secureGRPCAddr=", "--log_target"]).arg(log).args(flags).env_remove("RUST_LOG");
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        // It says so when it listens; then there is a log.
        let out = std::io::BufReader::new(child.stdout.take().unwrap());
        let ready = std::io::BufRead::lines(out).map_while(Result::ok).any(|line| line.contains("xDS on "));
        assert!(ready, "the control plane did not start");
        child.kill().unwrap();
        child.wait().unwrap();
        let text = fs::read_to_string(log).unwrap();
        fs::remove_file(log).unwrap();
        text.lines().map(str::to_owned).collect()
    };
    let lines =
        run(&["--log_output_level", "model:none,default:info,nonsense:info", "--log_as_json", "--log_rotate=x"], &log);
    let values: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let unknown: Vec<&Value> = values.iter().filter(|line| line["level"] == "warn").collect();
    assert!(unknown.iter().any(|line| line["msg"].as_str().unwrap().contains("nonsense")), "{lines:?}");
    assert!(unknown.iter().any(|line| line["flag"] == "--log_rotate"), "{lines:?}");
    assert!(values.iter().all(|line| line["time"].as_str().unwrap().ends_with('Z')), "{lines:?}");
    let quiet = run(&["--log_output_level=all:none", "--log_rotate=x"], &log);
    assert_eq!(quiet, [""; 0]);
    let plain = run(&["--log_output_level=default:warn", "--log_rotate=x"], &log);
    assert!(plain.iter().any(|line| line.split('\t').nth(1) == Some("warn")), "{plain:?}");
}
