use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use super::*;
use crate::Timing;

/// Longer than any machine takes; only a failing test waits so long.
const LONG: Duration = Duration::from_secs(60);

struct Watched {
    dir: tempfile::TempDir,
    changes: Receiver<Change>,
    source: FolderSource,
}

fn map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name:?}}}\ndata: {{v: {value:?}}}\n")
}

/// Starts a source over a folder; times that a test relies on not running out are set very long.
fn start(timing: Timing, prepare: impl FnOnce(&Path)) -> (Watched, Change) {
    let dir = tempfile::tempdir().expect("a folder");
    let config = Config { timing, ..Config::default() };
    prepare(&dir.path().join("in"));
    let (tx, changes) = mpsc::channel();
    let source = FolderSource::start(&dir.path().join("in"), config, move |change| {
        let _ = tx.send(change);
    });
    let watched = Watched { dir, changes, source: source.expect("starts") };
    let first = watched.next();
    assert!(first.initial);
    (watched, first)
}

fn one_file(dir: &Path) {
    fs::create_dir(dir).expect("creates");
    fs::write(dir.join("a.yaml"), map("x", "1")).expect("writes");
}

impl Watched {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("in").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("writes");
    }

    fn next(&self) -> Change {
        self.changes.recv_timeout(LONG).expect("a change comes")
    }
}

/// `+x=1 ~x=2 -x` for added, updated and deleted.
fn told(change: &Change) -> String {
    let value = |object: &trysail_model::Object| {
        format!("{}={}", object.reference.name, object.body.part("data")["v"].as_str().unwrap_or("-"))
    };
    let changes = &change.changes;
    let added = changes.added.iter().map(|object| format!("+{}", value(object)));
    let updated = changes.updated.iter().map(|updated| format!("~{}", value(&updated.new)));
    let deleted = changes.deleted.iter().map(|object| format!("-{}", object.reference.name));
    added.chain(updated).chain(deleted).collect::<Vec<_>>().join(" ")
}

#[test]
fn saves_deletions_and_new_folders_are_seen() {
    let (watched, first) = start(Timing::default(), one_file);
    assert_eq!(told(&first), "+x=1");
    watched.write("a.yaml", &map("x", "2"));
    assert_eq!(told(&watched.next()), "~x=2");
    fs::create_dir_all(watched.path("deep/deeper")).expect("creates");
    watched.write(
        "deep/deeper/b.json",
        "{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"j\"}}",
    );
    assert_eq!(told(&watched.next()), "+j=-");
    fs::remove_file(watched.path("a.yaml")).expect("removes");
    assert_eq!(told(&watched.next()), "-x");
    fs::remove_dir_all(watched.path("deep")).expect("removes");
    assert_eq!(told(&watched.next()), "-j");
}

#[test]
fn a_file_that_is_being_written_is_left_alone() {
    let both = format!("{}---\n{}", map("x", "1"), map("w", "1"));
    let timing = Timing { open_grace: LONG, ..Timing::default() };
    let (watched, _) = start(timing, |dir| {
        one_file(dir);
        fs::write(dir.join("a.yaml"), &both).expect("writes");
    });
    // Truncated, and cut where it still reads well: without `w`.
    let mut file = fs::File::create(watched.path("a.yaml")).expect("opens");
    file.write_all(map("x", "2").as_bytes()).expect("writes");
    thread::sleep(Duration::from_millis(250));
    // Others are not held up by it.
    watched.write("b.yaml", &map("o", "1"));
    assert_eq!(told(&watched.next()), "+o=1");
    file.write_all(format!("---\n{}", map("w", "2")).as_bytes()).expect("writes");
    drop(file);
    assert_eq!(told(&watched.next()), "~w=2 ~x=2");
}

#[test]
fn a_file_emptied_and_filled_again_is_one_change() {
    let timing = Timing { cut_grace: LONG, max_wait: Duration::from_millis(60), ..Timing::default() };
    let (watched, _) = start(timing, one_file);
    watched.write("a.yaml", "");
    thread::sleep(Duration::from_millis(150));
    watched.write("a.yaml", "apiVersion: v1\nkind: [\n");
    thread::sleep(Duration::from_millis(150));
    watched.write("a.yaml", &map("x", "2"));
    let change = watched.next();
    assert_eq!((told(&change).as_str(), change.reported.len()), ("~x=2", 0));
}

#[test]
fn replacing_by_rename_is_one_change() {
    let timing = Timing { vanish_grace: LONG, ..Timing::default() };
    let (watched, _) = start(timing, one_file);
    watched.write(".a.yaml.tmp", &map("x", "2"));
    fs::rename(watched.path(".a.yaml.tmp"), watched.path("a.yaml")).expect("renames");
    let change = watched.next();
    assert_eq!(told(&change), "~x=2");
    assert_eq!(*change.status, *watched.source.status());
    // As vim does it: the old file is moved away, the new one written in its place.
    fs::rename(watched.path("a.yaml"), watched.path("a.yaml~")).expect("renames");
    thread::sleep(Duration::from_millis(150));
    watched.write("a.yaml", &map("x", "3"));
    assert_eq!(told(&watched.next()), "~x=3");
}

#[test]
fn files_of_editors_are_ignored() {
    let (watched, _) = start(Timing::default(), one_file);
    for name in [".a.yaml.swp", "a.yaml~", "#a.yaml#", ".hidden.yaml", "notes.txt", "a.yaml.bak"] {
        watched.write(name, &map("no", "1"));
    }
    symlink("nowhere", watched.path(".#a.yaml")).expect("links");
    thread::sleep(Duration::from_millis(150));
    watched.write("b.yaml", &map("yes", "1"));
    let change = watched.next();
    assert_eq!(told(&change), "+yes=1");
    assert_eq!(change.status.rejections, []);
}

#[test]
fn a_bad_save_keeps_the_last_good_version_and_says_so() {
    let (watched, _) = start(Timing::default(), one_file);
    watched.write("a.yaml", &map("x", "2").replace("\"2\"", "2"));
    let change = watched.next();
    assert_eq!((told(&change).as_str(), change.reported.len(), change.resolved.len()), ("", 1, 0));
    assert!(change.reported[0].kept_last_good);
    assert_eq!(change.reported[0].field, "data[v]");
    watched.write("a.yaml", "a: [\n");
    let change = watched.next();
    assert_eq!((told(&change).as_str(), change.reported.len(), change.resolved.len()), ("", 1, 1));
    assert!(change.reported[0].kept_last_good, "{:?}", change.reported);
    watched.write("a.yaml", &map("x", "3"));
    let change = watched.next();
    assert_eq!((told(&change).as_str(), change.reported.len(), change.resolved.len()), ("~x=3", 0, 1));
}

#[test]
fn a_mounted_config_map_is_swapped_at_once() {
    let version = |dir: &Path, name: &str, value: &str| {
        fs::create_dir(dir.join(name)).expect("creates");
        fs::write(dir.join(name).join("a.yaml"), map("x", value)).expect("writes");
        fs::write(dir.join(name).join("b.yaml"), map("z", value)).expect("writes");
    };
    let (watched, first) = start(Timing::default(), |dir| {
        fs::create_dir(dir).expect("creates");
        version(dir, "..1", "1");
        symlink("..1", dir.join("..data")).expect("links");
        for name in ["a.yaml", "b.yaml"] {
            symlink(Path::new("..data").join(name), dir.join(name)).expect("links");
        }
    });
    assert_eq!(told(&first), "+x=1 +z=1");
    version(&watched.path(""), "..2", "2");
    symlink("..2", watched.path("..data_tmp")).expect("links");
    fs::rename(watched.path("..data_tmp"), watched.path("..data")).expect("renames");
    assert_eq!(told(&watched.next()), "~x=2 ~z=2");
}

#[test]
fn a_folder_that_goes_away_keeps_its_state() {
    let (watched, _) = start(Timing::default(), one_file);
    fs::rename(watched.path(""), watched.dir.path().join("away")).expect("renames");
    let change = watched.next();
    assert_eq!(told(&change), "");
    assert!(change.status.unreadable.as_ref().is_some_and(|why| why.contains("stays in force")));
    assert_eq!(change.status.kinds["ConfigMap"], 1);
    let other = watched.dir.path().join("other");
    fs::create_dir(&other).expect("creates");
    fs::write(other.join("a.yaml"), map("x", "2")).expect("writes");
    fs::rename(&other, watched.path("")).expect("renames");
    let mut change = watched.next();
    // Back first and then what it holds, or both at once.
    if told(&change).is_empty() {
        change = watched.next();
    }
    assert_eq!(told(&change), "~x=2");
    assert_eq!(change.status.unreadable, None);
    // The new folder is watched as the old one was.
    watched.write("a.yaml", &map("x", "3"));
    assert_eq!(told(&watched.next()), "~x=3");
}

#[test]
fn a_folder_that_is_not_there_is_an_error_at_the_start() {
    let error = FolderSource::start(Path::new("/nonexistent/folder"), Config::default(), |_| {}).expect_err("fails");
    assert!(error.to_string().contains("/nonexistent/folder"));
}

#[test]
fn settings_change_with_their_file() {
    let (watched, _) = start(Timing::default(), one_file);
    watched.write("mesh.yaml", "rootNamespace: one\n");
    let change = watched.next();
    assert!(change.changes.settings);
    assert_eq!(change.settings.mesh.as_deref().map(|mesh| mesh["rootNamespace"].clone()), Some("one".into()));
}
