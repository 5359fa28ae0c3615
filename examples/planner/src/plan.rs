//! Backward chaining: from what is wanted to what there is.

use std::collections::BTreeSet;

use crate::task::Tool;

/// The tools to call, in order, to make everything that is wanted without those that are known not to work. The first
/// tool that can make a thing is taken, and the next one when what it needs cannot be made.
///
/// # Errors
///
/// The thing that nothing can make.
pub(crate) fn plan<'a>(
    tools: &'a [Tool],
    have: &BTreeSet<String>,
    want: &[String],
    broken: &BTreeSet<String>,
) -> Result<Vec<&'a Tool>, String> {
    let usable: Vec<_> = tools.iter().filter(|tool| !broken.contains(&tool.name)).collect();
    let mut state = State {
        have: have.clone(),
        steps: Vec::new(),
    };
    for thing in want {
        state = make(&usable, state, thing, &mut Vec::new())?;
    }
    Ok(state.steps)
}

#[derive(Clone)]
struct State<'a> {
    have: BTreeSet<String>,
    steps: Vec<&'a Tool>,
}

fn make<'a>(tools: &[&'a Tool], state: State<'a>, thing: &str, pending: &mut Vec<String>) -> Result<State<'a>, String> {
    if state.have.contains(thing) {
        return Ok(state);
    }
    let mut missing = thing.to_owned();
    // What is being made already cannot be needed to make it.
    if !pending.iter().any(|name| name == thing) {
        pending.push(thing.to_owned());
        for tool in tools.iter().filter(|tool| tool.makes.iter().any(|made| made == thing)) {
            let mut needs = tool.needs.iter();
            let made = needs.try_fold(state.clone(), |state, need| make(tools, state, need, pending));
            match made {
                Ok(mut state) => {
                    pending.pop();
                    state.have.extend(tool.makes.iter().cloned());
                    state.steps.push(tool);
                    return Ok(state);
                }
                Err(fault) => missing = fault,
            }
        }
        pending.pop();
    }
    Err(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str, needs: &[&str], makes: &str) -> Tool {
        Tool {
            name: name.to_owned(),
            needs: needs.iter().map(ToString::to_string).collect(),
            makes: vec![makes.to_owned()],
            ..Tool::default()
        }
    }

    fn names(tools: &[Tool], broken: &[&str]) -> Result<Vec<String>, String> {
        let set = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        let steps = plan(tools, &set(&["raw"]), &["goal".to_owned()], &set(broken))?;
        Ok(steps.into_iter().map(|tool| tool.name.clone()).collect())
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let tools = [
            tool("join", &["left", "right"], "goal"),
            tool("l", &["clean"], "left"),
            tool("r", &["clean"], "right"),
            tool("c", &["raw"], "clean"),
        ];
        assert_eq!(names(&tools, &[]).unwrap(), ["c", "l", "r", "join"]);
    }

    #[test]
    fn another_way_is_taken_when_one_is_broken_or_leads_nowhere() {
        let tools = [
            tool("lost", &["nothing"], "goal"),
            tool("first", &["raw"], "goal"),
            tool("second", &["raw"], "goal"),
        ];
        assert_eq!(names(&tools, &[]).unwrap(), ["first"]);
        assert_eq!(names(&tools, &["first"]).unwrap(), ["second"]);
        assert_eq!(names(&tools, &["first", "second"]).unwrap_err(), "nothing");
    }

    #[test]
    fn circles_end() {
        let tools = [tool("a", &["b"], "goal"), tool("b", &["goal"], "b")];
        assert_eq!(names(&tools, &[]).unwrap_err(), "goal");
    }
}
