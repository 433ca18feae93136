//! A copy of a folder that a test edits as an editor would: a new file takes the old one's place.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

/// The copy; removed at the end.
pub struct Folder(TempDir);

impl Folder {
    /// Copies the files of a folder.
    pub fn copy(from: &Path) -> Folder {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        Folder(copy)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A file's text.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path().join(file)).unwrap()
    }

    /// Puts a file in place at once.
    pub fn write(&self, file: &str, text: &str) {
        let unfinished = self.path().join(format!(".{file}.tmp"));
        fs::write(&unfinished, text).unwrap();
        fs::rename(unfinished, self.path().join(file)).unwrap();
    }

    /// Replaces text that must be there.
    pub fn edit(&self, file: &str, old: &str, new: &str) {
        let text = self.read(file);
        assert!(text.contains(old), "{file} does not hold {old:?}");
        self.write(file, &text.replace(old, new));
    }
}

/// The document of a pod under another name and address.
pub fn pod_like(documents: &str, name: &str, new_name: &str, ip: &str, new_ip: &str) -> String {
    let of_pod = |document: &&str| document.contains("kind: Pod") && document.contains(&format!("name: {name}\n"));
    let document = documents.split("---\n").find(of_pod).expect("the pod is there");
    document.replace(&format!("name: {name}\n"), &format!("name: {new_name}\n")).replace(ip, new_ip)
}
