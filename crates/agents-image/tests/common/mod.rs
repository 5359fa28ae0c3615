//! Images and archives made in the test.

#![allow(dead_code)]

pub(crate) mod fake;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use agents_image::{ImageRef, ImageStore, ResolveOptions, Resolved};
use serde_json::{Value, json};
use sha2::Digest;

/// Writes tar streams of any kind, also such as no tar program writes.
#[derive(Clone, Default)]
pub(crate) struct TarBuilder(Vec<u8>);

impl TarBuilder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn header(kind: u8, name: &[u8]) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().linkflag = [kind];
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mtime(1_000_000_000);
        header
    }

    pub(crate) fn raw(mut self, mut header: tar::Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file_mode(self, name: impl AsRef<[u8]>, mode: u32, data: &[u8]) -> Self {
        let mut header = Self::header(b'0', name.as_ref());
        header.set_size(data.len() as u64);
        header.set_mode(mode);
        self.raw(header, data)
    }

    pub(crate) fn file(self, name: impl AsRef<[u8]>, data: &[u8]) -> Self {
        self.file_mode(name, 0o644, data)
    }

    pub(crate) fn dir_mode(self, name: &str, mode: u32) -> Self {
        let mut header = Self::header(b'5', name.as_bytes());
        header.set_mode(mode);
        self.raw(header, b"")
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.dir_mode(name, 0o755)
    }

    pub(crate) fn link(self, kind: u8, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.raw(header, b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(b'2', name, target)
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(b'1', name, target)
    }

    pub(crate) fn special(self, kind: u8, name: &str) -> Self {
        let mut header = Self::header(kind, name.as_bytes());
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        self.raw(header, b"")
    }

    pub(crate) fn bytes(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    /// Without the zeros at the end.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.0
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// An image: its layers as uncompressed tar files and as they are stored.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) layers: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

impl TestImage {
    pub(crate) fn new(layers: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|(tar, _)| digest(tar)).collect();
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self::with_config(
            layers,
            &json!({
                "architecture": arch, "os": "linux",
                "config": {"Env": ["PATH=/bin", "A=b"], "Cmd": ["sh"], "User": "7:8", "WorkingDir": "/w", "Labels": {"l": "v"}},
                "rootfs": {"type": "layers", "diff_ids": diff_ids}
            }),
        )
    }

    pub(crate) fn with_config(layers: Vec<(Vec<u8>, Vec<u8>)>, config: &Value) -> Self {
        let config = config.to_string().into_bytes();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|(_, stored)| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(stored), "size": stored.len()}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
            "layers": descriptors
        });
        Self {
            layers,
            config,
            manifest: manifest.to_string().into_bytes(),
        }
    }

    pub(crate) fn gzipped(layers: Vec<Vec<u8>>) -> Self {
        Self::new(layers.into_iter().map(|tar| (tar.clone(), gzip(&tar))).collect())
    }

    /// As `docker save` writes it.
    pub(crate) fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let mut tar = TarBuilder::new();
        let mut names = Vec::new();
        for (i, (layer, _)) in self.layers.iter().enumerate() {
            let name = format!("{i}/layer.tar");
            let data = layer;
            match self.layers[..i].iter().position(|(earlier, _)| earlier == layer) {
                // As Docker does for a layer that it has written before.
                Some(earlier) => tar = tar.symlink(&name, &format!("../{earlier}/layer.tar")),
                None => tar = tar.file(&name, data),
            }
            names.push(name);
        }
        let config = format!("{}.json", hex(&self.config));
        let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": names}]);
        tar.file(&config, &self.config)
            .file("manifest.json", manifest.to_string().as_bytes())
            .bytes()
    }

    /// The files of an OCI layout.
    pub(crate) fn layout(&self, tag: Option<&str>) -> Vec<(String, Vec<u8>)> {
        let mut descriptor = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&self.manifest), "size": self.manifest.len()
        });
        if let Some(tag) = tag {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        let blob = |bytes: &[u8]| (format!("blobs/sha256/{}", hex(bytes)), bytes.to_vec());
        files.push(blob(&self.config));
        files.push(blob(&self.manifest));
        files.extend(self.layers.iter().map(|(_, stored)| blob(stored)));
        files
    }

    pub(crate) fn write_layout(&self, folder: &Path, tag: Option<&str>) {
        for (name, data) in self.layout(tag) {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, data).unwrap();
        }
    }

    pub(crate) fn oci_archive(&self, tag: Option<&str>) -> Vec<u8> {
        let mut tar = TarBuilder::new();
        for (name, data) in self.layout(tag) {
            tar = tar.file(format!("./{name}"), &data);
        }
        tar.bytes()
    }
}

/// A store and a folder for the test's files, removed at the end.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: ImageStore,
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(folder.path().join("store")).unwrap();
        Self { folder, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, data: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, data).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn resolve_with(&self, image: &str, options: &ResolveOptions) -> agents_image::Result<Resolved> {
        resolve(&self.store, image, options)
    }

    pub(crate) fn resolve(&self, image: &str) -> agents_image::Result<Resolved> {
        self.resolve_with(image, &ResolveOptions::new())
    }

    /// Resolves an archive with this one layer.
    pub(crate) fn unpack(&self, layer: Vec<u8>) -> agents_image::Result<Resolved> {
        let image = TestImage::gzipped(vec![layer]);
        let file = self.write("image.tar", &image.docker_archive(&["test:1"]));
        self.resolve(&file)
    }

    /// Nothing unfinished is left.
    pub(crate) fn assert_clean(&self) {
        let left: Vec<_> = std::fs::read_dir(self.store.root().join("tmp")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

pub(crate) fn resolve(store: &ImageStore, image: &str, options: &ResolveOptions) -> agents_image::Result<Resolved> {
    let image = ImageRef::parse(image)?;
    runtime().block_on(store.resolve(&image, options))
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}
