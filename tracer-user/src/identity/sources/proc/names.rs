//! Names of containers that Docker and Podman keep in files.

use crate::identity::sources::node::Node;
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Longer files are not read.
const LONGEST_FILE: u64 = 16 << 20;
/// A longer name is none, in bytes.
const LONGEST_NAME: usize = 255;
/// Of containers/storage: those that survive a restart of the machine, and those that don't.
const PODMAN: [&str; 2] = [
    "/var/lib/containers/storage/overlay-containers/containers.json",
    "/var/lib/containers/storage/overlay-containers/volatile-containers.json",
];

/// Looks names up. Podman's files are read once, when the first container of Podman is looked up.
#[derive(Debug)]
pub(super) struct Names<'a> {
    node: &'a Node,
    podman: Option<HashMap<String, String>>,
}

impl<'a> Names<'a> {
    /// Of the containers of this node.
    pub(super) fn new(node: &'a Node) -> Self {
        Self { node, podman: None }
    }

    /// The name of a container. `runtime` is as its control group tells it: where that tells none it may be Docker's.
    /// `id` must be hexadecimal digits only: it becomes part of a path.
    pub(super) fn of(&mut self, runtime: Option<&str>, id: &str) -> Option<String> {
        match runtime {
            None | Some("docker") => {
                docker(&self.read(&format!("/var/lib/docker/containers/{id}/config.v2.json"))?)
            }
            Some("podman") => {
                if self.podman.is_none() {
                    let texts = PODMAN.iter().filter_map(|path| self.read(path));
                    self.podman = Some(texts.flat_map(|text| podman(&text)).collect());
                }
                self.podman.as_ref()?.get(id).cloned()
            }
            Some(_) => None,
        }
    }

    fn read(&self, path: &str) -> Option<String> {
        let file = self.node.places(Path::new(path)).find_map(|place| File::open(place).ok())?;
        let mut text = String::new();
        file.take(LONGEST_FILE).read_to_string(&mut text).ok()?;
        Some(text)
    }
}

/// `Name` of Docker's config.v2.json, which begins with a slash.
fn docker(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Container {
        #[serde(rename = "Name")]
        name: String,
    }
    let container: Container = serde_json::from_str(text).ok()?;
    sound(container.name.strip_prefix('/').unwrap_or(&container.name))
}

/// Ids and first names of Podman's containers.json.
fn podman(text: &str) -> Vec<(String, String)> {
    #[derive(Deserialize)]
    struct Container {
        id: String,
        #[serde(default)]
        names: Option<Vec<String>>,
    }
    let containers: Vec<Container> = serde_json::from_str(text).unwrap_or_default();
    let named = |container: Container| Some((container.id, sound(container.names?.first()?)?));
    containers.into_iter().filter_map(named).collect()
}

fn sound(name: &str) -> Option<String> {
    let is_sound = !name.is_empty() && name.len() <= LONGEST_NAME && !name.contains(char::is_control);
    is_sound.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ID: &str = "022c4ffba65e5031285fd427553e56c3fd6cc85a3a49f3fa2825d0a258d8a5d6";

    #[test]
    fn names_are_read_from_the_files_of_either() {
        let root = tempfile::tempdir().unwrap();
        let docker = root.path().join("var/lib/docker/containers").join(ID);
        let podman = root.path().join("var/lib/containers/storage/overlay-containers");
        fs::create_dir_all(&docker).unwrap();
        fs::create_dir_all(&podman).unwrap();
        fs::write(docker.join("config.v2.json"), r#"{"State":{"Running":true},"ID":"x","Name":"/web_1"}"#)
            .unwrap();
        let list = format!(
            r#"[{{"id":"{ID}","names":["db","other"],"layer":"x"}},{{"id":"b","names":null}},{{"id":"c"}}]"#
        );
        fs::write(podman.join("containers.json"), list).unwrap();
        let node = Node::new([root.path()]);
        let mut names = Names::new(&node);
        assert_eq!(names.of(Some("docker"), ID).as_deref(), Some("web_1"));
        assert_eq!(names.of(None, ID).as_deref(), Some("web_1"));
        assert_eq!(names.of(Some("podman"), ID).as_deref(), Some("db"));
        assert_eq!(names.of(Some("containerd"), ID), None);
        assert_eq!((names.of(Some("docker"), "b"), names.of(Some("podman"), "b")), (None, None));
    }

    #[test]
    fn odd_files_have_no_names() {
        for odd in ["", "{}", "[]", "null", r#"{"Name":7}"#, r#"{"Name":"/"}"#, "{\"Name\":\"/a\\u001b[2J\"}"]
        {
            assert_eq!(docker(odd), None, "{odd}");
        }
        assert_eq!(docker(&format!(r#"{{"Name":"/{}"}}"#, "x".repeat(256))), None);
        for odd in ["", "{}", "[1]", r#"[{"id":"a","names":[]}]"#, r#"[{"id":7}]"#] {
            assert!(podman(odd).is_empty(), "{odd}");
        }
    }
}
