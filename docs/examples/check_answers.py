"""Check answers by a rule: right is 1, wrong is 0, and a check that cannot say gives a reason."""

# %% What answers are held against, as `generate` keeps it beside each response
from expo_ray.rewards import load_reward_model, run_self_test

chats = [
    [
        {"role": "user", "content": "What is 1,200 divided by 100, in dozens?"},
        {"role": "assistant", "content": response},
    ]
    for response in ("That is 12, so **1 dozen**.", r"\boxed{\frac{12}{12}}", "Twelve.")
]

# %% The last number of a response, in whatever form
number = load_reward_model("check:number")
for score in number.score(chats, ["1", "1", "1"]):
    print(score.reward, score.error or "")

# %% A check that cannot read what it checks against says so; it does not call the answer wrong
[score] = number.score(chats[:1], ["a dozen"])
print(score.reward, score.error)

# %% Every kind tries itself on right and wrong answers before it is trusted
print(run_self_test(number).num_anchors_right)
