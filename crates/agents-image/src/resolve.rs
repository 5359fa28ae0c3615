//! From a reference to folders on disk.

use agents_core::error::{Error, Result};

use crate::{
    options::{Progress, ResolveOptions},
    reference::{ImageRef, quoted},
    resolved::Resolved,
    store::ImageStore,
};

#[allow(clippy::unused_async)]
pub(crate) async fn resolve(_store: &ImageStore, image: &ImageRef, options: &ResolveOptions) -> Result<Resolved> {
    match image {
        ImageRef::Host => Ok(Resolved::folder("/".as_ref(), "host".into())),
        ImageRef::Folder(path) => {
            let metadata = std::fs::metadata(path)
                .map_err(|error| Error::io(format!("cannot use the folder {} as an image", quoted(path)), error))?;
            if !metadata.is_dir() {
                return Err(Error::invalid(format!("{} is not a folder", quoted(path))));
            }
            Ok(Resolved::folder(path, image.to_string()))
        }
        _ => {
            options.report(Progress::Resolving);
            Err(Error::unsupported("this kind of image comes next"))
        }
    }
}
