"""The words that fill the slots of english.txt and korean.txt: names, places, and topics the model does not know.

Every sixth word of a list that is held out (`held_out`) is never trained on, so that the test asks about new ones.
"""

from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.replace("\n", " ").split("|") if word.strip())


def trained(words: tuple[str, ...]) -> tuple[str, ...]:
    """The five of six that training sees."""
    return tuple(word for index, word in enumerate(words) if index % 6 != 5)


def held_out(words: tuple[str, ...]) -> tuple[str, ...]:
    """The one of six that only the test sees."""
    return words[5::6]


@dataclass(frozen=True)
class Words:
    """One language's slot fillers."""

    names: tuple[str, ...]
    syllables: tuple[str, ...]
    cities: tuple[str, ...]
    topics: tuple[str, ...]
    tasks: tuple[str, ...]
    persons: tuple[str, ...]
    capitals: tuple[tuple[str, str], ...]
    unknown_countries: tuple[str, ...]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((left, right) for left, right in (pair.split("=") for pair in _words(text)))


ENGLISH = Words(
    names=_words("""
Anna|Ben|Clara|David|Emma|Felix|Grace|Henry|Ida|Jack|Kim|Leo|Mia|Noah|Olga|Paul|Quinn|Rosa|Sam|Tina|Uma|Victor|Wendy|
Xena|Yuki|Zoe|Alex|Maria|John|Sarah|Peter|Lisa|Tom|Julia|Max|Sophie|Daniel|Laura|Chris|Nina|Jin|Minho|Jiwoo|Sora|
Hana|Ali|Fatima|Omar|Priya|Raj|Chen|Wei|Ivan|Elena|Carlos|Lucia|Pierre|Marie|Hans|Greta|Bob|Alice|Charlie|Diana|
Ethan|Fiona|George|Hannah|Isaac|Jane|Kevin|Lena|Mark|Nora|Oscar|Petra|Ravi|Steve|Theo|Ursula|Vera|Will|Ximena|Yara|
Zack|Mary Ann|Michael|Robert|James|Linda|Patricia|Thomas|Elizabeth|Matthew|Anthony|Ashley|Joshua|Andrew|Olivia|Liam|
Ava|Lucas|Amelia|Mateo|Harper|Elijah|Evelyn|Logan|Abigail|Aiden|Ella|Jackson|Scarlett|Sebastian|Luna|Gabriel|Chloe"""),
    syllables=_words(
        "ba|do|ki|la|mo|nu|ra|so|ti|ve|wen|zor|dan|fer|gil|hul|jas|kol|lim|mar|nel|pim|quo|ris|sal|tam|"
        "un|vin|xi|yor|zel|bri|cla|dro|fla|gre|sta|tho|whi|an|el|is|or|us|ette|ia|ina|ton|son|ley|rick|bert"
    ),
    cities=_words("""
Seoul|Busan|Tokyo|Osaka|Paris|London|Berlin|Munich|Hamburg|Rome|Milan|Madrid|Barcelona|Lisbon|Vienna|Zurich|Geneva|
Oslo|Stockholm|Helsinki|Copenhagen|Amsterdam|Brussels|Dublin|Edinburgh|Prague|Warsaw|Budapest|Athens|Istanbul|Moscow|
Cairo|Lagos|Nairobi|Cape Town|Dubai|Delhi|Mumbai|Bangkok|Singapore|Jakarta|Manila|Hanoi|Beijing|Shanghai|Hong Kong|
Taipei|Sydney|Melbourne|Auckland|New York|Boston|Chicago|Los Angeles|San Francisco|Seattle|Miami|Dallas|Toronto|
Montreal|Vancouver|Mexico City|Lima|Bogota|Santiago|Buenos Aires|Rio de Janeiro|Sao Paulo|Incheon|Daegu|Jeju|Kyoto|
Venice|Florence|Naples|Porto|Seville|Lyon|Nice|Marseille|Cologne|Frankfurt|Leipzig|Krakow|Riga|Vilnius|Tallinn|
Reykjavik|Houston|Denver|Phoenix|Atlanta|Portland|Austin|Honolulu|Quebec|Havana|Casablanca|Tunis|Accra|Perth|Brisbane"""),
    topics=_words("""
quantum physics|black holes|the stock market|photosynthesis|the french revolution|machine learning|chess openings|
the roman empire|climate change|blockchain|bitcoin|taxes|insurance|genetics|dna|evolution|gravity|relativity|
the big bang|dinosaurs|volcanoes|earthquakes|python programming|javascript|databases|kubernetes|neural networks|
the second world war|napoleon's army|ancient egypt|the pyramids|greek mythology|buddhism|philosophy|ethics|logic|
algebra|calculus|geometry|statistics|prime numbers|chemistry|the periodic table|carbon|oxygen|metals|electricity|
magnets|lasers|rockets|satellites|airplanes|trains|car engines|electric cars|batteries|solar panels|nuclear power|
wind energy|oil|inflation|interest rates|mortgages|pensions|the euro|trade wars|democracy|elections|the constitution|
human rights|the united nations|vitamins|proteins|diabetes|headaches|vaccines|viruses in the body|surgery|psychology|
memory loss|sleep disorders|yoga|football|basketball|tennis|golf|cricket|baseball|swimming|marathons|skiing|surfing|
opera|jazz|rock music|hip hop|violins|guitars|painting|sculpture|architecture|photography|cinema|theatre|shakespeare's plays|
novels|grammar|linguistics|latin|sanskrit|the internet|computer networks|operating systems|linux|compilers|algorithms|
encryption|cyber security|robots in factories|drones|3d printing|virtual reality|video games|board games|gardening|roses|
orchids|bees|whales|sharks|elephants|penguins|wolves|snakes|mushrooms|cheese|wine|coffee roasting|tea ceremonies|sushi|
pizza dough|chocolate|bread|rice farming|wheat|fishing|hunting|sailing|mountaineering|deserts|glaciers|rivers|the amazon|
the sahara|antarctica|the north pole|islands|coral reefs|tides|clouds|hurricanes|tornadoes|seasons|calendars|clocks|maps|
compasses|currency exchange|job interviews|resumes|marketing|advertising|startups|management|law|contracts|patents|
copyright|fashion|shoes|jewelry|diamonds|gold mining|furniture|plumbing|carpentry|concrete|bridges|tunnels|skyscrapers|
medieval castles|knights|samurai|pirates|vikings|the silk road|the cold war|space travel|mars|saturn's rings|comets|
galaxies|dark matter|string theory|atoms|electrons|antibiotics|cancer|allergies|nutrition|diets|weight training|dance|
ballet|magic tricks|astrology|dreams|hypnosis|education|universities|kindergarten|homework|essay writing|poker|lotteries|
semiconductors|superconductors|fiber optics|radio waves|microscopes|telescopes|thermodynamics|entropy|game theory|
sociology|anthropology|archaeology|economics|the gdp of japan|fermentation|knitting|origami|calligraphy|parenting"""),
    tasks=_words("""
bake a cake|cook pasta|fix my car|write an email|book a flight|order a pizza|learn german|play the piano|lose weight|
grow tomatoes|build a house|repair a bicycle|write code|sort a list in python|file my taxes|buy a car|sell my house|
open a bank account|learn to swim|train a dog|make coffee|cook rice|boil an egg|paint a wall|change a tire|tie a tie|
invest money|write a book|learn guitar|knit a scarf|remove a stain|clean the oven|install linux|build a website|
set an alarm|play some music|turn on the light|call my mother|send a message|book a table|find a job|write a resume|
solve an equation|translate a letter|draw a horse|make sushi|brew beer|catch a fish|climb a mountain|run a marathon|
fly a drone|take good photos|edit a video|make a budget|learn to code|design a logo|start a company|plant a tree|
cut my hair|make soap|iron a shirt|wash a sweater|fix a leaking tap|hang a picture|remind me tomorrow|schedule a meeting|
do my homework|write my essay|make pancakes|grill a steak|cook kimchi stew|learn japanese|speak french|get a visa|
rent an apartment|pass my driving test|write a function|debug my program|make a paper plane|find my keys|order a taxi|
buy tickets|check my email|open the door|start the car|pay my bills|apply to a university|stop smoking|build muscle"""),
    persons=_words("""
Albert Einstein|Isaac Newton|Napoleon|Julius Caesar|Cleopatra|Mozart|Beethoven|Picasso|Leonardo da Vinci|Shakespeare|
Elon Musk|Bill Gates|Steve Jobs|Barack Obama|Abraham Lincoln|Mahatma Gandhi|Nelson Mandela|Marie Curie|Charles Darwin|
Galileo|Plato|Aristotle|Socrates|Confucius|Genghis Khan|Queen Victoria|Taylor Swift|Michael Jackson|Elvis Presley|
the Beatles|Messi|Ronaldo|Michael Jordan|Serena Williams|Usain Bolt|the president|the president of the usa|the pope|
the king of England|the mayor of London|Harry Potter|Sherlock Holmes|Batman|Spider-Man|King Sejong|BTS|Son Heung-min|
Bong Joon-ho|Alan Turing|Ada Lovelace|Nikola Tesla|Thomas Edison|Van Gogh|Monet|Bach|Chopin|Tolstoy|Dostoevsky|Goethe|
Kafka|Hemingway|Mark Twain|Jane Austen|Tom Hanks|Brad Pitt|Marilyn Monroe|Charlie Chaplin|Walt Disney|Pele|Maradona"""),
    capitals=_pairs(
        "France=Paris|Germany=Berlin|Italy=Rome|Spain=Madrid|England=London|Korea=Seoul|South Korea=Seoul|"
        "Japan=Tokyo|China=Beijing|Russia=Moscow|Egypt=Cairo|Greece=Athens|Austria=Vienna|Portugal=Lisbon|"
        "Norway=Oslo|Sweden=Stockholm|Thailand=Bangkok|Canada=Ottawa|Vietnam=Hanoi|Ireland=Dublin"
    ),
    unknown_countries=_words(
        "Brazil|Peru|Chile|Kenya|Nigeria|Ghana|Bolivia|Mongolia|Nepal|Iceland|Cuba|Jamaica|Iran|"
        "Iraq|Turkey|Ukraine|Poland|Hungary|Romania|Serbia|Croatia|Morocco|Algeria|Ethiopia|Uganda|"
        "Zambia|Angola|Australia|New Zealand|Fiji|Malaysia|Indonesia|Pakistan|India|Argentina"
    ),
)

KOREAN = Words(
    names=_words("""
민수|지훈|서연|지우|하늘|수진|영희|철수|민준|서준|도윤|예준|시우|하준|주원|지호|지후|준우|준서|건우|도현|현우|우진|
선우|서진|민재|현준|연우|유준|정우|승우|승현|시윤|준혁|은우|지환|승민|지우|유진|서현|민서|하은|하윤|윤서|지민|채원|
수아|지아|다은|은서|예은|수빈|소율|예린|소윤|지원|지안|하린|시은|유나|채은|윤아|가은|서영|민지|예나|나은|수민|정민|
동현|재현|성민|상우|태호|영수|순자|미영|은정|혜진|보라|다현|소희|미나|태양|별|바다|가람|슬기|아름|한결|나라|보람|새봄|
김민수|이지은|박서준|최유리|정하늘|강동원|조은지|윤아름|장미란|임수정|한지민|오세훈|신동엽|권지용|황정민|안나|
마이클|소피아|다니엘|올리비아|제임스|엠마|루카스|톰|앨리스|존"""),
    syllables=_words(
        "가|나|다|라|마|바|사|아|자|차|하|민|서|지|현|우|진|수|영|은|희|정|호|준|윤|채|원|도|연|주|성|경|"
        "태|혜|소|유|예|빈|율|림|람|솔|결|찬|혁|훈|석|규|완|욱|범|철|홍|란|옥|숙|순|금|봉|두|루|비|토|미|리|레"
    ),
    cities=_words("""
서울|부산|대구|인천|광주|대전|울산|세종|수원|제주|강릉|전주|경주|여수|춘천|포항|창원|청주|천안|목포|속초|안동|도쿄|
오사카|교토|베이징|상하이|홍콩|타이베이|방콕|하노이|싱가포르|마닐라|자카르타|델리|두바이|이스탄불|모스크바|파리|런던|
베를린|뮌헨|로마|밀라노|마드리드|바르셀로나|리스본|빈|취리히|오슬로|스톡홀름|헬싱키|코펜하겐|암스테르담|브뤼셀|더블린|
프라하|바르샤바|부다페스트|아테네|카이로|나이로비|케이프타운|시드니|멜버른|오클랜드|뉴욕|보스턴|시카고|로스앤젤레스|
샌프란시스코|시애틀|마이애미|토론토|밴쿠버|멕시코시티|리마|보고타|산티아고|삿포로|후쿠오카|나고야|베네치아|피렌체|
성남|고양|용인|군산|통영|김해|원주|평창|거제|순천"""),
    topics=_words("""
양자역학|블랙홀|주식 시장|광합성|프랑스 혁명|기계 학습|체스|로마 제국|기후 변화|블록체인|비트코인|세금|보험|유전학|
유전자|진화|중력|상대성 이론|빅뱅|공룡|화산|지진|파이썬|자바스크립트|데이터베이스|쿠버네티스|신경망|세계 대전|나폴레옹 전쟁|
고대 이집트|피라미드|그리스 신화|불교|철학|윤리|논리학|대수학|미적분|기하학|통계|소수|화학|주기율표|탄소|산소|금속|전기|
자석|레이저|로켓|인공위성|비행기|기차|자동차 엔진|전기차|배터리|태양광|원자력|풍력|석유|인플레이션|금리|대출|연금|환율|
무역|민주주의|선거|헌법|인권|유엔|비타민|단백질|당뇨|두통|백신|수술|심리학|불면증|요가|축구|농구|테니스|골프|야구|수영|
마라톤|스키|서핑|오페라|재즈|록 음악|힙합|바이올린|기타|그림|조각|건축|사진|영화 역사|연극|소설|문법|언어학|라틴어|인터넷|
네트워크|운영체제|리눅스|컴파일러|알고리즘|암호화|보안|드론|삼차원 프린터|가상 현실|비디오 게임|보드게임|정원 가꾸기|장미|
난초|꿀벌|고래|상어|코끼리|펭귄|늑대|뱀|버섯|치즈|와인|커피 원두|차 문화|초밥|김치|불고기|비빔밥|떡볶이|초콜릿|빵|벼농사|
낚시|사냥|항해|등산|사막|빙하|강|아마존|남극|북극|섬|산호초|밀물과 썰물|구름|태풍|계절|달력|지도|나침반|면접|이력서|마케팅|
광고|창업|경영|법률|계약|특허|저작권|패션|보석|다이아몬드|가구|배관|목공|콘크리트|다리 건설|터널|고층 건물|중세 성|기사|
사무라이|해적|바이킹|실크로드|냉전|우주여행|화성|토성|혜성|은하|암흑 물질|원자|전자|항생제|암|알레르기|영양|다이어트|근력 운동|
춤|발레|마술|점성술|최면|교육|대학교|유치원|숙제|글쓰기|포커|복권|반도체|초전도체|광섬유|전파|현미경|망원경|열역학|엔트로피|
게임 이론|사회학|인류학|고고학|경제학|일본 경제|발효|뜨개질|종이접기|서예|육아|조선 시대|고려 시대|신라|한글 창제|한복|한옥|
판소리|태권도|씨름|추석|설날|독도|한강|지하철|부동산|아파트|수능|군대|병원|약국|은행|우체국|도서관|박물관"""),
    tasks=_words("""
케이크를 만드|요리하|차를 고치|이메일을 쓰|비행기를 예약하|피자를 주문하|독일어를 배우|피아노를 치|살을 빼|토마토를 키우|
집을 사|자전거를 고치|코드를 짜|세금을 내|차를 사|계좌를 만드|수영을 배우|개를 훈련하|커피를 내리|밥을 하|계란을 삶|
벽을 칠하|타이어를 가|넥타이를 매|돈을 투자하|책을 쓰|기타를 치|목도리를 뜨|얼룩을 지우|리눅스를 설치하|웹사이트를 만드|
알람을 맞추|음악을 트|불을 켜|문자를 보내|식당을 예약하|직장을 구하|이력서를 쓰|방정식을 푸|편지를 번역하|말을 그리|
초밥을 만드|맥주를 만드|물고기를 잡|산에 오르|마라톤을 하|드론을 날리|사진을 잘 찍|영상을 편집하|예산을 세우|로고를 만드|
회사를 차리|나무를 심|머리를 자르|비누를 만드|셔츠를 다리|빨래를 하|그림을 거|회의를 잡|숙제를 하|스테이크를 굽|
김치찌개를 끓이|일본어를 배우|비자를 받|방을 구하|운전면허를 따|담배를 끊|근육을 키우|김치를 담그|중국어를 배우|앱을 만드"""),
    persons=_words("""
아인슈타인|뉴턴|나폴레옹|카이사르|클레오파트라|모차르트|베토벤|피카소|다빈치|셰익스피어|일론 머스크|빌 게이츠|
스티브 잡스|오바마|링컨|간디|만델라|퀴리 부인|다윈|갈릴레이|플라톤|아리스토텔레스|소크라테스|공자|칭기즈 칸|이순신|
세종대왕|손흥민|김연아|방탄소년단|블랙핑크|봉준호|유재석|아이유|싸이|박지성|안중근|유관순|윤동주|김구|신사임당|대통령|
미국 대통령|교황|영국 왕|서울 시장|해리 포터|셜록 홈스|배트맨|스파이더맨|튜링|테슬라|에디슨|고흐|모네|바흐|쇼팽|
톨스토이|괴테|카프카|헤밍웨이|메시|호날두|마이클 조던|마이클 잭슨|엘비스|비틀스|찰리 채플린|월트 디즈니|류현진"""),
    capitals=_pairs(
        "프랑스=파리|독일=베를린|이탈리아=로마|스페인=마드리드|영국=런던|한국=서울|대한민국=서울|일본=도쿄|"
        "중국=베이징|러시아=모스크바|이집트=카이로|그리스=아테네|오스트리아=빈|포르투갈=리스본|노르웨이=오슬로|"
        "스웨덴=스톡홀름|태국=방콕|캐나다=오타와|베트남=하노이|아일랜드=더블린"
    ),
    unknown_countries=_words(
        "브라질|페루|칠레|케냐|나이지리아|가나|볼리비아|몽골|네팔|아이슬란드|쿠바|자메이카|이란|이라크|"
        "튀르키예|우크라이나|폴란드|헝가리|루마니아|세르비아|크로아티아|모로코|알제리|에티오피아|우간다|"
        "잠비아|앙골라|호주|뉴질랜드|피지|말레이시아|인도네시아|파키스탄|인도|아르헨티나"
    ),
)
