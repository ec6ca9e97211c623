"""Models that write training data: `manners data write`. docs/writers.md.

desk.py            asking a model by a template, and the tally of what was kept and why the rest was not
filters.py         rules on instructions, instances and answers: functions from texts to a reason, or None
seeds.py           the rows that writing starts from
self_instruct.py   new instructions from a pool, then their instances
evolve.py          instructions made harder, or others like them
rewrite.py         paraphrases, personas, constraints that can be checked, instructions for given texts
safety.py          harmful requests in several wordings, with answers that decline
constitution.py    answers criticised and revised by written principles
command.py         the command: settings, run folder, report
prompts/           what the model is asked, as templates
"""
