//! The names of Python packages.

/// The normalised name of a requirement such as `Flask[async]>=2,<3 ; python_version > "3"`, by PEP 503 and PEP 508.
///
/// None when the text does not start with a name, such as a URL, a path or an option: it could be any package.
pub(crate) fn name(requirement: &str) -> Option<String> {
    let requirement = requirement.trim();
    let end = requirement
        .find(|c: char| !is_name_char(c))
        .unwrap_or(requirement.len());
    let (name, rest) = requirement.split_at(end);
    let rest = rest.trim_start();
    // What may follow a name: extras, versions, a marker or a URL. Anything else makes it a URL (`git+https:`) or a path.
    if !(rest.is_empty() || rest.starts_with(['[', '(', '<', '>', '=', '!', '~', ';', '@'])) {
        return None;
    }
    normalised(name)
}

/// A bare name, normalised by PEP 503: lower case, and each run of `-`, `_` and `.` is one `-`.
pub(crate) fn normalised(name: &str) -> Option<String> {
    let ends_well = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(is_name_char);
    // `x.whl`, `x.zip` and the like are files to pip.
    let is_file = [".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar"]
        .iter()
        .any(|ending| name.to_ascii_lowercase().ends_with(ending));
    if !ends_well || is_file {
        return None;
    }
    let mut normal = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '-' | '_' | '.' if normal.ends_with('-') => {}
            '-' | '_' | '.' => normal.push('-'),
            c => normal.push(c.to_ascii_lowercase()),
        }
    }
    Some(normal)
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_off_and_normalised() {
        let cases = [
            ("requests", Some("requests")),
            ("Flask-SQLAlchemy==3.1", Some("flask-sqlalchemy")),
            ("zope.interface >= 5, < 6", Some("zope-interface")),
            ("A__b-._c~=1", Some("a-b-c")),
            (" requests[security,socks] ; python_version > '3'", Some("requests")),
            ("name(>=1)", Some("name")),
            ("pip @ https://example.com/pip.zip", Some("pip")),
            ("x!=1", Some("x")),
            ("", None),
            ("-r requirements.txt", None),
            ("--index-url=https://example.com", None),
            ("git+https://example.com/x.git", None),
            ("https://example.com/x.whl", None),
            ("./x", None),
            ("folder/x", None),
            ("x-1.0-py3-none-any.whl", None),
            ("x.TAR.gz", None),
            ("x y", None),
            ("ünicode", None),
            ("x-", None),
        ];
        for (requirement, expected) in cases {
            assert_eq!(name(requirement).as_deref(), expected, "{requirement:?}");
        }
    }
}
