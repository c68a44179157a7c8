"""Texts that say the same in other words, and texts about the same subject that say something else."""

PARAPHRASES = (
    (
        "The city council voted on Tuesday to close the old bridge to cars from next spring, so that people can walk and cycle across it safely.",
        "On Tuesday the city council decided to ban cars from the old bridge from next spring, making it safe for walking and cycling.",
    ),
    (
        "Preheat the oven to 180 degrees, mix the flour with butter and sugar, and bake the biscuits for twelve minutes until they are golden.",
        "Heat your oven to 180 degrees. Combine butter, sugar and flour, then bake the cookies for about twelve minutes, until golden brown.",
    ),
    (
        "Researchers found that people who sleep less than six hours a night are more likely to catch a cold after being exposed to the virus.",
        "Those sleeping fewer than six hours per night have a higher chance of catching a cold when exposed to the virus, a study found.",
    ),
    (
        "The library will stay open until midnight during the examination weeks, and students may book group rooms online two days in advance.",
        "During exam weeks the library is open until midnight. Group study rooms can be reserved online by students up to two days ahead.",
    ),
    (
        "A power failure at the main data centre took the airline's booking system down for four hours, and two hundred flights were delayed.",
        "Two hundred flights were late after the airline's reservation system was down for four hours: its main data centre had lost power.",
    ),
    (
        "To reset your password, open the settings page, choose security, and click on the link that we send to your e-mail address.",
        "If you want to reset your password, go to settings, select security and follow the link we send you by e-mail.",
    ),
    (
        "The museum has bought a rare painting by a Dutch master, which had been in a private collection for more than a hundred years.",
        "A rare work by a Dutch master, privately owned for over a century, has been acquired by the museum.",
    ),
    (
        "Solar panels have become so cheap that in many countries they now produce electricity at a lower price than coal.",
        "In many countries electricity from solar panels is now cheaper than electricity from coal, since the price of panels has fallen so much.",
    ),
    (
        "The company reported a profit of three million dollars for the last quarter, twice as much as a year ago, thanks to strong sales in Asia.",
        "Thanks to strong Asian sales the company doubled its quarterly profit compared with a year earlier, to three million dollars.",
    ),
    (
        "Wash your hands with soap for at least twenty seconds before you prepare food and after you have touched raw meat.",
        "Before preparing food, and after touching raw meat, you should wash your hands with soap for twenty seconds or longer.",
    ),
    (
        "The bears in the valley wake up earlier than they used to because the winters have become shorter and warmer.",
        "Because winters are now shorter and warmer, bears in the valley are waking up earlier than before.",
    ),
    (
        "The goalkeeper saved two penalties, and the home team reached the final for the first time in thirty years.",
        "For the first time in three decades the home side is in the final, after its goalkeeper stopped two penalty kicks.",
    ),
    (
        "Bees are important for agriculture: about a third of the food that we eat depends on plants that they pollinate.",
        "About one third of our food depends on plants pollinated by bees, which makes bees important for farming.",
    ),
    (
        "The railway line along the coast will be closed for two weeks in August while workers replace the tracks and repair a tunnel.",
        "For two weeks in August no trains will run on the coastal railway line, as the tracks are being replaced and a tunnel repaired.",
    ),
    (
        "She learned to play the violin at the age of five and gave her first concert with an orchestra when she was eleven.",
        "At five she began to learn the violin; at eleven she performed her first concert with an orchestra.",
    ),
    (
        "If the engine does not start, check first whether the battery is charged and whether there is fuel in the tank.",
        "When the engine will not start, first make sure that the battery is charged and the tank has fuel in it.",
    ),
    (
        "The new law obliges restaurants to list allergens such as nuts, milk and eggs on their menus from January on.",
        "From January restaurants must state allergens on their menus, for example nuts, milk and eggs, under the new law.",
    ),
    (
        "The volcano on the island erupted early this morning, and about five thousand inhabitants had to leave their homes.",
        "Some five thousand residents of the island were evacuated from their homes after the volcano erupted early this morning.",
    ),
    (
        "A compiler translates the whole program into machine code before it runs, while an interpreter executes it line by line.",
        "Interpreters execute a program line by line; compilers translate all of it into machine code before it is run.",
    ),
    (
        "The farmer sells vegetables at the market every Saturday, and what is not sold he gives to the food bank.",
        "Every Saturday the farmer has a vegetable stall at the market; he donates what he does not sell to the food bank.",
    ),
    (
        "Drinking coffee late in the afternoon can make it hard to fall asleep, because caffeine stays in the body for many hours.",
        "Caffeine stays in your body for many hours, so coffee late in the afternoon may make falling asleep difficult.",
    ),
    (
        "The satellite will measure the height of the oceans every ten days and help scientists to understand how fast the sea is rising.",
        "Every ten days the satellite will measure sea level across the oceans, helping scientists understand how quickly the sea rises.",
    ),
    (
        "Our shop accepts returns within thirty days of purchase if the goods are unused and you can show the receipt.",
        "You can return unused goods to our shop within thirty days of buying them, provided that you have the receipt.",
    ),
    (
        "The river froze so quickly that the last ferry of the season was trapped in the ice for nine days.",
        "For nine days the season's last ferry was stuck in the ice, so quickly had the river frozen.",
    ),
)
"""Pairs of texts with the same content."""

RELATED = (
    (
        "The mayor opened the new swimming pool on Friday; tickets for adults cost five pounds.",
        "The mayor will not run for office again, he said on Friday, after eight years at the head of the town.",
    ),
    (
        "Water boils at a lower temperature on high mountains because the pressure of the air is lower there.",
        "Most of the water on high mountains falls as snow and melts only in early summer.",
    ),
    (
        "The bank raised its interest rate by a quarter of a point in order to slow inflation down.",
        "The bank closed forty of its branches because most of its customers use the telephone app.",
    ),
    (
        "Python lists can hold values of different types and grow when elements are appended.",
        "Python sets hold each value once and answer quickly whether a value belongs to them.",
    ),
    (
        "The striker scored three goals in the first half and was carried off the field on the shoulders of his team.",
        "The striker broke his leg in the second half and will not play for the rest of the season.",
    ),
    (
        "Cut the onions finely and fry them slowly in olive oil until they are soft.",
        "Store onions in a dry and dark place, away from potatoes, so that they do not sprout.",
    ),
    (
        "The train from the capital arrives at nine in the morning on platform two.",
        "The train to the capital leaves at six in the evening from platform seven.",
    ),
    (
        "A study of ten thousand adults links daily walking to a lower risk of heart disease.",
        "A study of ten thousand children finds no link between computer games and school marks.",
    ),
    (
        "The camera takes sharp pictures in daylight, but its battery is empty after two hours.",
        "The camera has a long battery life, but pictures taken at night are noisy.",
    ),
    (
        "The museum shows paintings by young artists from Brazil until the end of May.",
        "The museum is closed on Mondays and on public holidays.",
    ),
    (
        "The storm tore the roof off the school, and lessons take place in tents.",
        "The storm missed the coast, and the fishing boats went out again the next day.",
    ),
    (
        "The phone weighs a hundred and sixty grams and has a screen of six inches.",
        "The phone was stolen from her bag on the bus and found again in a park.",
    ),
    (
        "The president signed the treaty on fishing rights with the neighbouring country.",
        "The president refused to sign the budget and sent it back to parliament.",
    ),
    (
        "Cats sleep up to sixteen hours a day, mostly in short naps.",
        "Cats should be vaccinated at the age of eight weeks and again four weeks later.",
    ),
    (
        "The company is hiring two hundred engineers for its plant in the north.",
        "The company dismissed two hundred engineers at its plant in the north.",
    ),
    (
        "The first edition of the novel appeared in 1851 and sold poorly.",
        "The film of the novel won four awards and made its director famous.",
    ),
)
"""Pairs of texts about the same subject with different content; none of these texts says what another one here says."""

TEMPLATES = (
    (
        "On Monday the temperature in Leeds will rise to 21 degrees, with light wind from the west and little rain.",
        "On Thursday the temperature in York will fall to 3 degrees, with strong wind from the north and heavy snow.",
    ),
    (
        "The flat in Mill Street has three rooms, a balcony and a garage, and costs 900 a month.",
        "The flat in Hill Road has two rooms, a garden and no garage, and costs 650 a month.",
    ),
    (
        "Anna Berg, born in 1931 in Oslo, was a Norwegian chemist who worked on polymers.",
        "Erik Lund, born in 1947 in Bergen, was a Norwegian painter who worked in oil.",
    ),
    (
        "Revenue of the steel maker rose by 12 percent to 340 million in the first quarter.",
        "Revenue of the software house fell by 7 percent to 58 million in the third quarter.",
    ),
    (
        "Take one tablet of 5 mg in the morning with a glass of water.",
        "Take two tablets of 20 mg in the evening, never with alcohol.",
    ),
    (
        "Version 2.4 fixes a crash on opening large files and adds export to CSV.",
        "Version 3.1 fixes a leak on closing windows and drops export to XML.",
    ),
    (
        "The bus number 14 runs from the station to the hospital every ten minutes.",
        "The bus number 62 runs from the harbour to the airport every half hour.",
    ),
    (
        "The committee approved the motion by eight votes to three.",
        "The committee rejected the motion by eight votes to three.",
    ),
)
"""Pairs that share their form and differ in the facts: what a model of meaning confuses first."""

CHINESE_PARAPHRASES = (
    ("水从山上流下来推动石磨转动，人们用它把谷物磨成面粉。", "河水自山而下带动磨盘，村民靠它把麦子碾成面粉。"),
    ("今天股市大幅下跌，投资者纷纷抛售科技股。", "股票市场今日重挫，科技股遭到投资者抛售。"),
    ("医生建议每天喝足够的水并保持规律的睡眠。", "大夫推荐每日多饮水，作息要有规律。"),
    ("这家餐厅的火锅味道很好，服务也很周到。", "这个饭馆火锅好吃，服务员态度也好。"),
    ("火箭成功发射，将三颗卫星送入预定轨道。", "三颗卫星随火箭升空，顺利进入轨道。"),
    ("图书馆在考试周期间开放到午夜，学生可以在网上预约房间。", "考试周图书馆开到半夜，房间可由学生上网预订。"),
    ("由于停电，航空公司的订票系统中断了四个小时。", "因为断电，航空公司订票系统瘫痪四小时。"),
    ("市议会决定从明年春天起禁止汽车通过旧桥。", "从明年春季开始，旧桥不再允许汽车通行，这是市议会的决定。"),
)
"""Pairs of Chinese texts with the same content."""
