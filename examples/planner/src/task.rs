//! What the agent is told: see `workspace/task.txt`.

/// A way to make things from other things.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) needs: Vec<String>,
    pub(crate) makes: Vec<String>,
    /// A command for `sh`.
    pub(crate) run: String,
    /// How often it may be called when it says that trying again can help.
    pub(crate) tries: u32,
}

/// What there is, what is wanted, and the tools, the preferred ones first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) have: Vec<String>,
    pub(crate) want: Vec<String>,
    pub(crate) tools: Vec<Tool>,
}

impl Task {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut task = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fault = |what: &str| format!("line {}: {what}", index + 1);
            let (word, rest) = line
                .split_once(char::is_whitespace)
                .ok_or_else(|| fault("only one word"))?;
            let rest = rest.trim();
            let names = || rest.split_whitespace().map(str::to_owned);
            if names().any(|name| word != "run" && (name.contains('/') || name.starts_with('.'))) {
                return Err(fault("a name leads elsewhere"));
            }
            let current = task
                .tools
                .last_mut()
                .ok_or_else(|| fault("belongs to a tool, and there is none yet"));
            match word {
                "have" => task.have.extend(names()),
                "want" => task.want.extend(names()),
                "tool" => task.tools.push(Tool {
                    name: rest.to_owned(),
                    tries: 1,
                    ..Tool::default()
                }),
                "needs" => current?.needs.extend(names()),
                "makes" => current?.makes.extend(names()),
                "run" => current?.run = rest.to_owned(),
                "tries" => current?.tries = rest.parse().map_err(|_| fault("tries needs a number"))?,
                _ => {
                    return Err(fault(
                        "begins with none of have, want, tool, needs, makes, run and tries",
                    ));
                }
            }
        }
        if task.want.is_empty() {
            return Err("nothing is wanted".to_owned());
        }
        if let Some(tool) = task
            .tools
            .iter()
            .find(|tool| tool.makes.is_empty() || tool.run.is_empty())
        {
            return Err(format!(
                "the tool {} makes nothing, or does not say what to run",
                tool.name
            ));
        }
        Ok(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_read() {
        let task =
            Task::parse("# x\nhave a b\nwant c\n\ntool t\n  needs a b\n  makes c\n  tries 2\n  run cat a  b > c\n")
                .unwrap();
        assert_eq!((task.have.len(), task.want.len()), (2, 1));
        let tool = Tool {
            name: "t".to_owned(),
            needs: vec!["a".to_owned(), "b".to_owned()],
            makes: vec!["c".to_owned()],
            run: "cat a  b > c".to_owned(),
            tries: 2,
        };
        assert_eq!(task.tools, [tool]);
    }

    #[test]
    fn faults_are_named_with_their_line() {
        for (text, fault) in [
            ("have a\n", "nothing is wanted"),
            ("want a\nneeds b\n", "line 2: belongs to a tool"),
            ("want a\nlike b\n", "line 2: begins with none"),
            ("want ../a\n", "line 1: a name leads elsewhere"),
            ("want a\ntool t\nmakes a\n", "the tool t makes nothing, or"),
            ("want a\ntool t\ntries x\n", "line 3: tries needs"),
        ] {
            let found = Task::parse(text).unwrap_err();
            assert!(found.contains(fault), "{text:?}: {found}");
        }
    }
}
